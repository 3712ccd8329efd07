//! Metadata values of a GGUF file, stored as compactly as the file stores them.
//!
//! A vocabulary has some 50,000 to 250,000 strings, so lists are flat: [`TextList`] is one buffer of
//! text with an offset an item, [`NumberList`] the file's own bytes. No value here is larger than the
//! bytes that the file spent on it plus four bytes a string, which is what bounds the memory that a
//! hostile header can ask for.
//!
//! Start at [`Value`].

/// The type of a number in a GGUF file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NumberKind {
    /// 8 bits, unsigned.
    U8,
    /// 8 bits, signed.
    I8,
    /// 16 bits, unsigned.
    U16,
    /// 16 bits, signed.
    I16,
    /// 32 bits, unsigned.
    U32,
    /// 32 bits, signed.
    I32,
    /// 64 bits, unsigned.
    U64,
    /// 64 bits, signed.
    I64,
    /// 32 bits, floating.
    F32,
    /// 64 bits, floating.
    F64,
    /// One byte, 0 or 1.
    Bool,
}

impl NumberKind {
    /// The kind with this id in the file format, if it is a number's.
    pub fn from_id(id: u32) -> Option<NumberKind> {
        Some(match id {
            0 => NumberKind::U8,
            1 => NumberKind::I8,
            2 => NumberKind::U16,
            3 => NumberKind::I16,
            4 => NumberKind::U32,
            5 => NumberKind::I32,
            6 => NumberKind::F32,
            7 => NumberKind::Bool,
            10 => NumberKind::U64,
            11 => NumberKind::I64,
            12 => NumberKind::F64,
            _ => return None,
        })
    }

    /// The id in the file format.
    pub fn id(self) -> u32 {
        match self {
            NumberKind::U8 => 0,
            NumberKind::I8 => 1,
            NumberKind::U16 => 2,
            NumberKind::I16 => 3,
            NumberKind::U32 => 4,
            NumberKind::I32 => 5,
            NumberKind::F32 => 6,
            NumberKind::Bool => 7,
            NumberKind::U64 => 10,
            NumberKind::I64 => 11,
            NumberKind::F64 => 12,
        }
    }

    /// Bytes that one number takes.
    pub fn size_bytes(self) -> usize {
        match self {
            NumberKind::U8 | NumberKind::I8 | NumberKind::Bool => 1,
            NumberKind::U16 | NumberKind::I16 => 2,
            NumberKind::U32 | NumberKind::I32 | NumberKind::F32 => 4,
            NumberKind::U64 | NumberKind::I64 | NumberKind::F64 => 8,
        }
    }

    /// Reads one number from exactly [`NumberKind::size_bytes`] little-endian bytes; shorter input is
    /// padded with zeros.
    pub fn decode(self, bytes: &[u8]) -> Number {
        let mut word = [0u8; 8];
        let n = bytes.len().min(self.size_bytes());
        word[..n].copy_from_slice(&bytes[..n]);
        let bits = u64::from_le_bytes(word);
        // Each cast cuts the word down to the kind's own width before it is widened again.
        match self {
            NumberKind::U8 | NumberKind::U16 | NumberKind::U32 | NumberKind::U64 => Number::Unsigned(bits),
            NumberKind::I8 => Number::Signed(i64::from(bits as u8 as i8)),
            NumberKind::I16 => Number::Signed(i64::from(bits as u16 as i16)),
            NumberKind::I32 => Number::Signed(i64::from(bits as u32 as i32)),
            NumberKind::I64 => Number::Signed(bits as i64),
            NumberKind::F32 => Number::Float(f64::from(f32::from_bits(bits as u32))),
            NumberKind::F64 => Number::Float(f64::from_bits(bits)),
            NumberKind::Bool => Number::Bool(bits != 0),
        }
    }
}

/// A number, widened.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Number {
    /// Any of the unsigned kinds.
    Unsigned(u64),
    /// Any of the signed kinds.
    Signed(i64),
    /// Either of the floating kinds; may be NaN or infinite.
    Float(f64),
    /// A truth value.
    Bool(bool),
}

impl Number {
    /// The number as an unsigned integer, if it is an integer and not negative.
    pub fn as_u64(self) -> Option<u64> {
        match self {
            Number::Unsigned(value) => Some(value),
            Number::Signed(value) => u64::try_from(value).ok(),
            Number::Float(_) | Number::Bool(_) => None,
        }
    }

    /// The number as a float; integers are converted, truth values are not.
    pub fn as_f64(self) -> Option<f64> {
        match self {
            Number::Unsigned(value) => Some(value as f64),
            Number::Signed(value) => Some(value as f64),
            Number::Float(value) => Some(value),
            Number::Bool(_) => None,
        }
    }
}

/// A list of numbers of one kind, in the file's own bytes.
#[derive(Debug, Clone, PartialEq)]
pub struct NumberList {
    kind: NumberKind,
    bytes: Vec<u8>,
}

impl NumberList {
    /// A list over little-endian bytes; a last incomplete number is left out.
    pub fn new(kind: NumberKind, bytes: Vec<u8>) -> NumberList {
        NumberList { kind, bytes }
    }

    /// How many numbers there are.
    pub fn len(&self) -> usize {
        self.bytes.len() / self.kind.size_bytes()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The numbers, in order.
    pub fn iter(&self) -> impl Iterator<Item = Number> + '_ {
        self.bytes.chunks_exact(self.kind.size_bytes()).map(|chunk| self.kind.decode(chunk))
    }
}

/// A list of strings in one buffer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TextList {
    text: String,
    /// Where each item ends in `text`.
    ends: Vec<u32>,
}

impl TextList {
    /// How many strings there are.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// One string.
    pub fn get(&self, index: usize) -> Option<&str> {
        let end = *self.ends.get(index)? as usize;
        let start = match index {
            0 => 0,
            _ => *self.ends.get(index - 1)? as usize,
        };
        self.text.get(start..end)
    }

    /// The strings, in order.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        (0..self.len()).filter_map(|index| self.get(index))
    }

    /// Appends a string; `false`, and nothing appended, once the whole passes 4 GiB.
    pub fn push(&mut self, item: &str) -> bool {
        match u32::try_from(self.text.len() + item.len()) {
            Ok(end) => {
                self.text.push_str(item);
                self.ends.push(end);
                true
            }
            Err(_) => false,
        }
    }
}

impl<'a> FromIterator<&'a str> for TextList {
    fn from_iter<I: IntoIterator<Item = &'a str>>(items: I) -> TextList {
        let mut list = TextList::default();
        for item in items {
            list.push(item);
        }
        list
    }
}

/// One metadata value.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// A number or truth value.
    Number(Number),
    /// A string.
    Text(String),
    /// A list of numbers.
    Numbers(NumberList),
    /// A list of strings.
    Texts(TextList),
    /// A list of lists: read over, since nothing here uses one.
    Nested,
}

impl Value {
    /// What kind of value this is, in words for an error.
    pub fn kind(&self) -> &'static str {
        match self {
            Value::Number(Number::Unsigned(_) | Number::Signed(_)) => "an integer",
            Value::Number(Number::Float(_)) => "a float",
            Value::Number(Number::Bool(_)) => "a truth value",
            Value::Text(_) => "a string",
            Value::Numbers(_) => "a list of numbers",
            Value::Texts(_) => "a list of strings",
            Value::Nested => "a list of lists",
        }
    }
}
