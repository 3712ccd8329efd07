//! Forbidden phrases as patterns of letters, and where a text stands in them.
//!
//! A letter is the list of the byte strings that spell it, so that case is folded once, here, and the
//! matching sees bytes only: a token may well end inside a character. [`Phrases::new`] reads a tenant's
//! list, [`Phrases::advance`] follows a text byte by byte, [`Phrases::rest`] is what would complete a phrase.

use vassal_guest::Pattern;

/// How many phrases a list may have. One step searches for as many rests as phrases are begun, at
/// about a thousand units of fuel each: with this many of one first letter it still has enough.
pub(crate) const PHRASES_MAX: usize = 128;

/// The contract's bound on a pattern.
const LETTERS_MAX: usize = 256;

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
    phrases: Vec<Pattern>,
    /// Which phrases a byte may begin: most bytes of a text begin none. `[256]`, empty without phrases.
    begins: Vec<Vec<usize>>,
}

impl Phrases {
    /// Reads a list, one phrase a line. White space around a phrase is dropped, and a run of it inside
    /// a phrase stands for one character of white space of any kind.
    ///
    /// # Errors
    /// Too many phrases, or one that is too long, in words for the tenant.
    pub(crate) fn new(list: &str) -> Result<Phrases, String> {
        let mut phrases: Vec<Pattern> = Vec::new();
        for line in list.lines() {
            let mut letters = Pattern::new();
            for word in line.split_whitespace() {
                if !letters.is_empty() {
                    letters.push(WHITE_SPACE);
                }
                word.chars().for_each(|character| push_letter(&mut letters, character));
            }
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
        if phrases.is_empty() {
            return Ok(Phrases::default());
        }
        let mut begins = vec![Vec::new(); 256];
        for (phrase, letters) in phrases.iter().enumerate() {
            for first in letters.spellings(0).filter_map(|spelling| spelling.first()) {
                let begun: &mut Vec<usize> = &mut begins[usize::from(*first)];
                if begun.last() != Some(&phrase) {
                    begun.push(phrase);
                }
            }
        }
        Ok(Phrases { phrases, begins })
    }

    /// Whether nothing is forbidden.
    pub(crate) fn is_empty(&self) -> bool {
        self.phrases.is_empty()
    }

    /// The whole phrases.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Pattern> {
        self.phrases.iter()
    }

    /// What is begun after one more byte. A phrase that the byte completes is not.
    pub(crate) fn advance(&self, begun: &[Begun], byte: u8) -> Vec<Begun> {
        let mut next = Vec::new();
        for phrase in self.begins.get(usize::from(byte)).into_iter().flatten() {
            self.step(&Begun { phrase: *phrase, letter: 0, bytes: Vec::new() }, byte, &mut next);
        }
        for place in begun {
            self.step(place, byte, &mut next);
        }
        next
    }

    fn step(&self, place: &Begun, byte: u8, next: &mut Vec<Begun>) {
        let letters = &self.phrases[place.phrase];
        let there = place.bytes.len();
        let goes_on = |spelling: &&[u8]| spelling.starts_with(&place.bytes) && spelling.get(there) == Some(&byte);
        let fitting = letters.spellings(place.letter).filter(goes_on);
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
    pub(crate) fn rest(&self, place: &Begun) -> Pattern {
        let letters = &self.phrases[place.phrase];
        let there = place.bytes.len();
        let mut rest = Pattern::new();
        let goes_on = |spelling: &&[u8]| spelling.len() > there && spelling.starts_with(&place.bytes);
        rest.push(letters.spellings(place.letter).filter(goes_on).map(|spelling| &spelling[there..]));
        for letter in place.letter + 1..letters.len() {
            rest.push(letters.spellings(letter));
        }
        rest
    }
}

/// Two spellings may lead to one place.
fn add_place(places: &mut Vec<Begun>, phrase: usize, letter: usize, bytes: Vec<u8>) {
    let place = Begun { phrase, letter, bytes };
    if !places.contains(&place) {
        places.push(place);
    }
}

/// Adds a letter: a character, and what upper and lower case make of it, in both directions. Accents are not
/// folded, and a letter is not taken apart into a base and its combining marks.
pub(crate) fn push_letter(letters: &mut Pattern, character: char) {
    // Most letters are these, and Unicode's tables cost some thousand units of fuel a letter.
    match character {
        'a'..='j' | 'l'..='r' | 't'..='z' | 'A'..='J' | 'L'..='R' | 'T'..='Z' => {
            letters.push([[character.to_ascii_lowercase() as u8], [character.to_ascii_uppercase() as u8]]);
        }
        'k' | 'K' => letters.push(["k", "K", "\u{212a}"]),
        's' | 'S' => letters.push(["s", "S", "ſ"]),
        '\0'..='@' | '['..='`' | '{'..='~' => letters.push([[character as u8]]),
        _ => letters.push(spellings(character)),
    }
}

/// The spellings of a character by Unicode's tables.
fn spellings(character: char) -> Vec<String> {
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
    spellings.retain(|spelling| spelling.len() <= 16);
    spellings.truncate(16);
    spellings
}

fn add(spellings: &mut Vec<String>, spelling: String) {
    if !spellings.contains(&spelling) {
        spellings.push(spelling);
    }
}
