//! Forbidden phrases as sequences of letters, and where a text stands in them.
//!
//! A letter is the list of the byte strings that spell it, so that case is folded once, here, and the
//! matching sees bytes only: a token may well end inside a character. [`Phrases::new`] reads a tenant's
//! list, [`Phrases::advance`] follows a text byte by byte, [`Phrases::rest`] is what would complete a phrase.

/// How many phrases a list may have. One step searches for as many rests as phrases are begun, at
/// some 1,300 units of fuel each: with this many of one first letter it still has enough.
pub(crate) const PHRASES_MAX: usize = 128;

/// The contract's bound on a pattern.
const LETTERS_MAX: usize = 256;

/// The ways to spell one letter, in bytes.
pub(crate) type Letter = Vec<Vec<u8>>;

/// Characters that fold to one that their own upper and lower case do not lead to.
const MORE_SPELLINGS: [(char, char); 7] =
    [('s', 'ſ'), ('k', '\u{212a}'), ('å', '\u{212b}'), ('σ', 'ς'), ('ω', '\u{2126}'), ('μ', 'µ'), ('ß', 'ẞ')];

/// The white space that any white space of a phrase stands for.
const WHITE_SPACE: [&str; 8] = [" ", "\n", "\t", "\r", "\r\n", "\u{a0}", "\u{202f}", "\u{3000}"];

/// A phrase that the text has begun: `letter` is the next one, of which some bytes may be there.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Begun {
    /// Which phrase.
    pub(crate) phrase: usize,
    /// Which of its letters comes next.
    pub(crate) letter: usize,
    /// The bytes of that letter that are there already, fewer than some spelling has.
    pub(crate) bytes: Vec<u8>,
}

/// A list of forbidden phrases.
#[derive(Clone, Debug, Default)]
pub(crate) struct Phrases {
    phrases: Vec<Vec<Letter>>,
}

impl Phrases {
    /// Reads a list, one phrase a line. White space around a phrase is dropped, and a run of it inside
    /// a phrase stands for one character of white space of any kind.
    ///
    /// # Errors
    /// Too many phrases, or one that is too long, in words for the tenant.
    pub(crate) fn new(list: &str) -> Result<Phrases, String> {
        let mut phrases: Vec<Vec<Letter>> = Vec::new();
        for line in list.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            let letters: Vec<Letter> = words.join(" ").chars().map(letter).collect();
            if letters.len() > LETTERS_MAX {
                return Err(format!("a phrase has at most {LETTERS_MAX} letters, one has {}", letters.len()));
            }
            if !letters.is_empty() && !phrases.contains(&letters) {
                phrases.push(letters);
            }
        }
        if phrases.len() > PHRASES_MAX {
            return Err(format!("the list has at most {PHRASES_MAX} phrases, it has {}", phrases.len()));
        }
        Ok(Phrases { phrases })
    }

    /// The whole phrases.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &[Letter]> {
        self.phrases.iter().map(Vec::as_slice)
    }

    /// What is begun after one more byte. A phrase that the byte completes is not.
    pub(crate) fn advance(&self, begun: &[Begun], byte: u8) -> Vec<Begun> {
        let mut next = Vec::new();
        for phrase in 0..self.phrases.len() {
            self.step(&Begun { phrase, letter: 0, bytes: Vec::new() }, byte, &mut next);
        }
        for place in begun {
            self.step(place, byte, &mut next);
        }
        next
    }

    fn step(&self, place: &Begun, byte: u8, next: &mut Vec<Begun>) {
        let letters = &self.phrases[place.phrase];
        let spellings = &letters[place.letter];
        let there = place.bytes.len();
        let goes_on = |spelling: &&Vec<u8>| spelling.starts_with(&place.bytes) && spelling.get(there) == Some(&byte);
        let mut fitting = spellings.iter().filter(goes_on).peekable();
        if fitting.peek().is_none() {
            return;
        }
        let (mut ends, mut continues) = (false, false);
        for spelling in fitting {
            ends |= spelling.len() == there + 1;
            continues |= spelling.len() > there + 1;
        }
        if ends && place.letter + 1 < letters.len() {
            add_place(next, place.phrase, place.letter + 1, Vec::new());
        }
        if continues {
            let bytes = [&place.bytes[..], &[byte]].concat();
            add_place(next, place.phrase, place.letter, bytes);
        }
    }

    /// What is missing of a phrase that is begun.
    pub(crate) fn rest(&self, place: &Begun) -> Vec<Letter> {
        let mut letters = self.phrases[place.phrase][place.letter..].to_vec();
        if let Some(first) = letters.first_mut() {
            let there = place.bytes.len();
            first.retain(|spelling| spelling.len() > there && spelling.starts_with(&place.bytes));
            for spelling in first {
                spelling.drain(..there);
            }
        }
        letters
    }
}

/// Two spellings may lead to one place.
fn add_place(places: &mut Vec<Begun>, phrase: usize, letter: usize, bytes: Vec<u8>) {
    let place = Begun { phrase, letter, bytes };
    if !places.contains(&place) {
        places.push(place);
    }
}

/// The spellings of a character: itself, and what upper and lower case make of it, in both directions.
/// Accents are not folded, and a letter is not taken apart into a base and its combining marks.
pub(crate) fn letter(character: char) -> Letter {
    if character.is_whitespace() {
        return WHITE_SPACE.iter().map(|space| space.as_bytes().to_vec()).collect();
    }
    let mut spellings: Vec<String> = vec![character.to_string()];
    let mut seen = 0;
    while seen < spellings.len() && spellings.len() < 12 {
        let spelling = spellings[seen].clone();
        add(&mut spellings, spelling.chars().flat_map(char::to_lowercase).collect());
        add(&mut spellings, spelling.chars().flat_map(char::to_uppercase).collect());
        for (usual, other) in MORE_SPELLINGS {
            for (from, to) in [(usual, other), (other, usual)] {
                if spelling.chars().eq([from]) {
                    add(&mut spellings, to.to_string());
                }
            }
        }
        // What upper case spells with two letters, as ß, is met as Ss as well.
        let mut characters = spelling.chars();
        if let (Some(first), Some(second), None) = (characters.next(), characters.next(), characters.next()) {
            add(&mut spellings, first.to_uppercase().chain(second.to_lowercase()).collect());
        }
        seen += 1;
    }
    let bounded = |bytes: &Vec<u8>| bytes.len() <= 16;
    spellings.into_iter().map(String::into_bytes).filter(bounded).take(16).collect()
}

fn add(spellings: &mut Vec<String>, spelling: String) {
    if !spellings.contains(&spelling) {
        spellings.push(spelling);
    }
}
