//! Which tokens of a vocabulary match a pattern: the host's side of the contract's `text.find`.
//!
//! A policy that forbids phrases or keeps to a grammar has to know which of tens of thousands of tokens
//! begin with, end with or contain some letters. No instance could afford to hold the vocabulary,
//! so the host keeps one index for everybody: every suffix of every token's bytes, sorted. A pattern
//! narrows a range of it letter by letter, so a search costs what the vocabulary really shares with
//! the pattern, and that is also what it charges in fuel. It knows nothing of policies or stores.
//!
//! Building it for 49,152 tokens (350 kB of bytes) takes some 60 ms and 3 MB: once a vocabulary, and
//! only when a policy asks. Start at [`TokenSearch::find`].

use std::ops::Range;

/// The most letters in a pattern.
pub const LETTERS_MAX: usize = 256;
/// The most spellings of a letter.
pub const SPELLINGS_MAX: usize = 16;
/// The most bytes in a spelling: any character, or the characters that another folds to.
pub const SPELLING_BYTES_MAX: usize = 16;
/// What trying a spelling charges: two binary searches, at worst some 600 ns.
const FUEL_PER_SPELLING: u64 = 32;
/// How many found places charge one unit: marking one costs a few ns.
const PLACES_PER_FUEL: u64 = 4;

/// A text in which each letter may be spelled in several ways, in flat lists. Nothing is known of it yet:
/// [`TokenSearch::find`] checks it.
#[derive(Clone, Copy, Debug)]
pub struct Pattern<'a> {
    /// Every spelling's bytes, one after the other.
    pub bytes: &'a [u8],
    /// The end of each spelling in `bytes`.
    pub spellings: &'a [u32],
    /// The end of each letter in `spellings`.
    pub letters: &'a [u32],
}

/// Where in a token a pattern has to lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// It is the whole token.
    Whole,
    /// The token begins with it.
    Start,
    /// The token ends with it.
    End,
    /// The token has it somewhere.
    Anywhere,
}

/// Why a search has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FindError {
    /// The pattern has too many letters.
    #[error("a pattern has at most {LETTERS_MAX} letters, this one {0}")]
    Letters(usize),
    /// A letter has no spelling, or too many.
    #[error("a letter has 1 to {SPELLINGS_MAX} spellings, letter {letter} has {spellings}")]
    Spellings {
        /// Which letter.
        letter: usize,
        /// How many it has.
        spellings: usize,
    },
    /// A spelling is empty or too long.
    #[error("a spelling has 1 to {SPELLING_BYTES_MAX} bytes, one of letter {letter} has {bytes}")]
    SpellingBytes {
        /// Which letter.
        letter: usize,
        /// How many bytes it has.
        bytes: usize,
    },
    /// An end before the one before it, or past its list; or a list goes on after the last end.
    #[error("the ends of the pattern's {0} do not divide their list")]
    Ends(&'static str),
    /// The fuel was spent before the search was done.
    #[error("the search costs more fuel than is left")]
    OutOfFuel,
}

/// A vocabulary too large for the index.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the vocabulary has {0} bytes of text, an index holds at most 4 GiB")]
pub struct TooLarge(pub usize);

/// The index of one vocabulary.
pub struct TokenSearch {
    /// Every token's bytes, one after the other.
    bytes: Vec<u8>,
    /// Where each token's bytes end. `[vocabulary]`
    ends: Vec<u32>,
    /// Which token each byte belongs to. `[bytes]`
    owners: Vec<u32>,
    /// Where each suffix begins, in the order of the suffixes. `[bytes]`
    suffixes: Vec<u32>,
}

/// The suffixes that begin with one spelling of the letters so far.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Beginning {
    /// Their range in `suffixes`.
    first: usize,
    end: usize,
    /// How many bytes they share.
    depth: usize,
}

impl TokenSearch {
    /// Indexes a vocabulary of `size` tokens. `bytes_of` gives a token's bytes; for a special token,
    /// which is not text, it has to give none.
    ///
    /// # Errors
    /// [`TooLarge`] above 4 GiB of bytes.
    pub fn new<'a>(size: usize, bytes_of: impl Fn(u32) -> &'a [u8]) -> Result<TokenSearch, TooLarge> {
        let (mut bytes, mut ends, mut owners) = (Vec::new(), Vec::with_capacity(size), Vec::new());
        for token in 0..size as u32 {
            bytes.extend_from_slice(bytes_of(token));
            owners.resize(bytes.len(), token);
            ends.push(u32::try_from(bytes.len()).map_err(|_| TooLarge(bytes.len()))?);
        }
        let mut search = TokenSearch { bytes, ends, owners, suffixes: Vec::new() };
        // Most comparisons are settled by the first bytes as one number, which is what makes this quick.
        let mut keyed: Vec<(u64, u32)> = (0..search.bytes.len() as u32).map(|at| (search.key(at), at)).collect();
        keyed.sort_unstable_by(|a, b| {
            a.0.cmp(&b.0).then_with(|| search.suffix(a.1).cmp(search.suffix(b.1))).then(a.1.cmp(&b.1))
        });
        search.suffixes = keyed.into_iter().map(|(_, at)| at).collect();
        Ok(search)
    }

    /// The first 8 bytes of a suffix, zeros after its end. A real zero byte sorts as an end does, so
    /// equal keys are not equal suffixes.
    fn key(&self, at: u32) -> u64 {
        let suffix = self.suffix(at);
        let mut key = [0u8; 8];
        let length = suffix.len().min(8);
        key[..length].copy_from_slice(&suffix[..length]);
        u64::from_be_bytes(key)
    }

    fn suffix(&self, at: u32) -> &[u8] {
        let owner = self.owners[at as usize] as usize;
        &self.bytes[at as usize..self.ends[owner] as usize]
    }

    /// The set of the tokens that have the pattern at the place: bit i is token i, 64 a word, lowest
    /// bit first; no words at all where there is none. An empty pattern lies in every token that has bytes.
    ///
    /// # Errors
    /// A pattern beyond its bounds, or too little fuel; then none is left.
    pub fn find(&self, pattern: Pattern<'_>, place: Place, fuel: &mut u64) -> Result<Vec<u64>, FindError> {
        charge(fuel, (pattern.bytes.len() + pattern.spellings.len() + pattern.letters.len()) as u64)?;
        let letters = check(pattern)?;
        let mut beginnings = vec![Beginning { first: 0, end: self.suffixes.len(), depth: 0 }];
        for letter in &letters {
            let mut longer = Vec::new();
            for beginning in &beginnings {
                for spelling in letter {
                    charge(fuel, FUEL_PER_SPELLING)?;
                    longer.extend(self.narrow(beginning, spelling));
                }
            }
            // Two spellings of several letters may come to the same bytes.
            longer.sort_unstable();
            longer.dedup();
            beginnings = longer;
        }
        let places: usize = beginnings.iter().map(|beginning| beginning.end - beginning.first).sum();
        charge(fuel, (places as u64).div_ceil(PLACES_PER_FUEL))?;
        let mut words = vec![0u64; self.ends.len().div_ceil(64)];
        let mut found = false;
        for beginning in beginnings {
            for at in &self.suffixes[beginning.first..beginning.end] {
                let token = self.owners[*at as usize] as usize;
                let Range { start, end } = self.range(token);
                let at_start = *at as usize == start;
                let to_end = *at as usize + beginning.depth == end;
                let fits = match place {
                    Place::Whole => at_start && to_end,
                    Place::Start => at_start,
                    Place::End => to_end,
                    Place::Anywhere => true,
                };
                // An empty pattern ends where it begins, so it lies at the end of any token.
                if fits || (letters.is_empty() && place == Place::End) {
                    words[token / 64] |= 1 << (token % 64);
                    found = true;
                }
            }
        }
        if !found {
            return Ok(Vec::new());
        }
        charge(fuel, words.len() as u64)?;
        Ok(words)
    }

    fn range(&self, token: usize) -> Range<usize> {
        let start = if token == 0 { 0 } else { self.ends[token - 1] as usize };
        start..self.ends[token] as usize
    }

    /// The suffixes of `beginning` that go on with `spelling`; none if no suffix does.
    fn narrow(&self, beginning: &Beginning, spelling: &[u8]) -> Option<Beginning> {
        let suffixes = &self.suffixes[beginning.first..beginning.end];
        let next = |at: u32| {
            let rest = &self.suffix(at)[beginning.depth..];
            &rest[..rest.len().min(spelling.len())]
        };
        let skipped = suffixes.partition_point(|at| next(*at) < spelling);
        let found = suffixes[skipped..].partition_point(|at| next(*at) == spelling);
        let first = beginning.first + skipped;
        let narrowed = Beginning { first, end: first + found, depth: beginning.depth + spelling.len() };
        (found > 0).then_some(narrowed)
    }
}

/// The spellings of each letter, within the bounds.
fn check(pattern: Pattern<'_>) -> Result<Vec<Vec<&[u8]>>, FindError> {
    if pattern.letters.len() > LETTERS_MAX {
        return Err(FindError::Letters(pattern.letters.len()));
    }
    let spelling_ranges = ranges(pattern.spellings, pattern.bytes.len()).ok_or(FindError::Ends("spellings"))?;
    let letter_ranges = ranges(pattern.letters, pattern.spellings.len()).ok_or(FindError::Ends("letters"))?;
    let mut letters = Vec::with_capacity(letter_ranges.len());
    for (letter, range) in letter_ranges.into_iter().enumerate() {
        if !(1..=SPELLINGS_MAX).contains(&range.len()) {
            return Err(FindError::Spellings { letter, spellings: range.len() });
        }
        let mut spellings = Vec::with_capacity(range.len());
        for bytes in &spelling_ranges[range] {
            if !(1..=SPELLING_BYTES_MAX).contains(&bytes.len()) {
                return Err(FindError::SpellingBytes { letter, bytes: bytes.len() });
            }
            spellings.push(&pattern.bytes[bytes.clone()]);
        }
        letters.push(spellings);
    }
    Ok(letters)
}

/// The ranges that rising ends make of a list of this length, if they make up all of it.
fn ranges(ends: &[u32], length: usize) -> Option<Vec<Range<usize>>> {
    let mut start = 0;
    let mut ranges = Vec::with_capacity(ends.len());
    for end in ends {
        let end = *end as usize;
        if end < start || end > length {
            return None;
        }
        ranges.push(start..end);
        start = end;
    }
    (start == length).then_some(ranges)
}

fn charge(fuel: &mut u64, units: u64) -> Result<(), FindError> {
    let left = fuel.checked_sub(units);
    *fuel = left.unwrap_or(0);
    left.map(|_| ()).ok_or(FindError::OutOfFuel)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A pattern letter by letter, as it is easy to write.
    type Letters = [Vec<Vec<u8>>];

    struct Flat(Vec<u8>, Vec<u32>, Vec<u32>);

    impl Flat {
        fn new(letters: &Letters) -> Flat {
            let mut flat = Flat(Vec::new(), Vec::new(), Vec::new());
            for letter in letters {
                for spelling in letter {
                    flat.0.extend(spelling);
                    flat.1.push(flat.0.len() as u32);
                }
                flat.2.push(flat.1.len() as u32);
            }
            flat
        }

        fn pattern(&self) -> Pattern<'_> {
            Pattern { bytes: &self.0, spellings: &self.1, letters: &self.2 }
        }
    }

    /// Every byte string that the pattern spells.
    fn spelled(pattern: &Letters) -> Vec<Vec<u8>> {
        pattern.iter().fold(vec![Vec::new()], |texts, letter| {
            let longer =
                texts.iter().flat_map(|text| letter.iter().map(move |spelling| [&text[..], spelling].concat()));
            longer.collect()
        })
    }

    fn matches(token: &[u8], text: &[u8], place: Place) -> bool {
        !token.is_empty()
            && match place {
                Place::Whole => token == text,
                Place::Start => token.starts_with(text),
                Place::End => token.ends_with(text),
                Place::Anywhere => text.is_empty() || token.windows(text.len()).any(|window| window == text),
            }
    }

    fn check_all(vocabulary: &[Vec<u8>], pattern: &Letters) {
        let search = TokenSearch::new(vocabulary.len(), |token| &vocabulary[token as usize]).unwrap();
        for place in [Place::Whole, Place::Start, Place::End, Place::Anywhere] {
            let words = search.find(Flat::new(pattern).pattern(), place, &mut u64::MAX.clone()).unwrap();
            for (token, bytes) in vocabulary.iter().enumerate() {
                let expected = spelled(pattern).iter().any(|text| matches(bytes, text, place));
                let found = words.get(token / 64).is_some_and(|word| word >> (token % 64) & 1 == 1);
                assert_eq!(found, expected, "{bytes:?} {pattern:?} {place:?}");
            }
        }
    }

    #[test]
    fn the_index_agrees_with_looking_at_every_token() {
        let mut state = 7u32;
        let mut next = |bound: u32| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 16) % bound
        };
        for _ in 0..60 {
            // Few letters, a zero byte among them, make many repeated suffixes.
            let mut text = |most: u32, least: u32| {
                let length = least + next(most - least + 1);
                (0..length).map(|_| [0u8, b'a', b'b', 0xc3][next(4) as usize]).collect::<Vec<u8>>()
            };
            let vocabulary: Vec<Vec<u8>> = (0..150).map(|_| text(12, 0)).collect();
            let pattern: Vec<Vec<Vec<u8>>> = (0..3).map(|_| vec![text(3, 1), text(2, 1)]).collect();
            for letters in 0..=3 {
                check_all(&vocabulary, &pattern[..letters]);
            }
        }
    }

    #[test]
    fn bounds_and_fuel_are_kept() {
        let vocabulary = [&b"ab"[..], b"abc", b""];
        let search = TokenSearch::new(3, |token| vocabulary[token as usize]).unwrap();
        let letter = |bytes: usize| vec![vec![b'a'; bytes]];
        let find = |pattern: &Letters, mut fuel: u64| {
            search.find(Flat::new(pattern).pattern(), Place::Start, &mut fuel).map(|_| fuel)
        };
        assert_eq!(find(&vec![letter(1); 257], 1 << 20), Err(FindError::Letters(257)));
        assert_eq!(find(&[vec![]], 1 << 20), Err(FindError::Spellings { letter: 0, spellings: 0 }));
        assert_eq!(find(&[letter(17)], 1 << 20), Err(FindError::SpellingBytes { letter: 0, bytes: 17 }));
        // Six numbers of pattern, two letters of one spelling each, two places, and a word of answer.
        let pattern = [vec![b"a".to_vec()], vec![b"b".to_vec()]];
        assert_eq!(find(&pattern, 1000), Ok(1000 - 6 - 64 - 1 - 1));
        assert_eq!(find(&pattern, 71), Err(FindError::OutOfFuel));
    }

    #[test]
    fn ends_that_divide_nothing_are_refused() {
        let search = TokenSearch::new(1, |_| b"ab").unwrap();
        let find = |spellings: &[u32], letters: &[u32]| {
            search.find(Pattern { bytes: b"ab", spellings, letters }, Place::Start, &mut 1000).map(|_| ())
        };
        assert_eq!(find(&[1, 2], &[1, 2]), Ok(()));
        for spellings in [&[1][..], &[2, 1], &[1, 3], &[1, u32::MAX], &[]] {
            assert_eq!(find(spellings, &[1]), Err(FindError::Ends("spellings")), "{spellings:?}");
        }
        for letters in [&[1][..], &[2, 1], &[3], &[]] {
            assert_eq!(find(&[1, 2], letters), Err(FindError::Ends("letters")), "{letters:?}");
        }
    }

    #[test]
    fn a_flood_of_spellings_is_bounded_by_fuel() {
        let vocabulary = vec![b"aaaaaaaaaaaaaaaa".to_vec(); 64];
        let search = TokenSearch::new(64, |token| &vocabulary[token as usize]).unwrap();
        // 16 spellings a letter spell 16^256 texts, of which only 16 are different beginnings.
        let letter: Vec<Vec<u8>> = (1..=16).map(|length| vec![b'a'; length]).collect();
        let mut fuel = 250_000;
        let words = search.find(Flat::new(&vec![letter; 16]).pattern(), Place::Anywhere, &mut fuel).unwrap();
        assert_eq!(words, [u64::MAX]);
        assert!(fuel > 150_000, "{fuel}");
    }
}
