//! Values of flags that are lists of `key=value`, separated by commas.

use std::fmt::Display;

use thiserror::Error;

/// The pairs of one flag: every key known, none given twice, each with a value.
#[derive(Debug)]
pub(crate) struct KeyValues<'a> {
    pairs: Vec<(&'static str, &'a str)>,
}

impl<'a> KeyValues<'a> {
    /// Parses `text`, whose keys must be among `known`. A value may contain `=` but no comma.
    pub(crate) fn parse(text: &'a str, known: &[&'static str]) -> Result<Self, BadKeyValues> {
        let mut pairs: Vec<(&'static str, &str)> = Vec::new();
        for item in text.split(',') {
            let listed = || known.join(", ");
            let (key, value) = item.split_once('=').unwrap_or((item, ""));
            let Some(&key) = known.iter().find(|&&name| name == key) else {
                return Err(BadKeyValues::Unknown { key: key.to_owned(), known: listed() });
            };
            if value.is_empty() {
                return Err(BadKeyValues::NoValue { key });
            }
            if pairs.iter().any(|&(name, _)| name == key) {
                return Err(BadKeyValues::Twice { key });
            }
            pairs.push((key, value));
        }
        Ok(Self { pairs })
    }

    /// The same of a flag with one key, which may be left out.
    pub(crate) fn parse_or_bare(text: &'a str, key: &'static str) -> Result<Self, BadKeyValues> {
        if text.is_empty() || text.contains(['=', ',']) {
            return Self::parse(text, &[key]);
        }
        Ok(Self { pairs: vec![(key, text)] })
    }

    /// The value of `key`, if it was given.
    pub(crate) fn value(&self, key: &str) -> Option<&'a str> {
        self.pairs.iter().find(|&&(name, _)| name == key).map(|&(_, value)| value)
    }

    /// The value of `key` as `parse` reads it, if it was given.
    pub(crate) fn parsed<T, E: Display>(
        &self,
        key: &'static str,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Result<Option<T>, BadKeyValues> {
        let refused = |value: &str, problem: E| BadKeyValues::Value {
            key,
            value: value.to_owned(),
            problem: problem.to_string(),
        };
        self.value(key).map(|value| parse(value).map_err(|e| refused(value, e))).transpose()
    }

    /// The value of `key` as `parse` reads it; it must be given.
    pub(crate) fn required<T, E: Display>(
        &self,
        key: &'static str,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Result<T, BadKeyValues> {
        self.parsed(key, parse)?.ok_or(BadKeyValues::Missing { key })
    }
}

/// What is wrong with a list. The code that prints this names the flag.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(crate) enum BadKeyValues {
    /// A key that the flag does not have.
    #[error("unknown key {key:?}; write key=value,... with the keys {known}")]
    Unknown {
        /// What stands where a key should.
        key: String,
        /// Those that the flag has.
        known: String,
    },
    /// `key`, or `key=`.
    #[error("{key} has no value; write {key}=VALUE")]
    NoValue {
        /// Its name.
        key: &'static str,
    },
    /// The same key again.
    #[error("{key} is given twice")]
    Twice {
        /// Its name.
        key: &'static str,
    },
    /// A key that must be there.
    #[error("{key} is missing; write {key}=VALUE")]
    Missing {
        /// Its name.
        key: &'static str,
    },
    /// A value that is not accepted.
    #[error("{key}={value}: {problem}")]
    Value {
        /// Whose value.
        key: &'static str,
        /// What was given.
        value: String,
        /// What is accepted instead.
        problem: String,
    },
    /// A key that goes only with another.
    #[error("{key} is given without {other}; {why}")]
    Without {
        /// The key that was given.
        key: &'static str,
        /// What it needs.
        other: &'static str,
        /// The reason.
        why: &'static str,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: [&str; 2] = ["one", "two"];

    fn refused(text: &str) -> String {
        KeyValues::parse(text, &KNOWN).unwrap_err().to_string()
    }

    /// Pairs come in any order, and a value may contain an equals sign.
    #[test]
    fn reads_pairs() {
        let list = KeyValues::parse("two=a=b,one=1", &KNOWN).unwrap();
        assert_eq!((list.value("one"), list.value("two")), (Some("1"), Some("a=b")));
        assert_eq!(list.parsed("one", str::parse::<u8>), Ok(Some(1)));
    }

    /// What is not a list of known keys with values is refused, and the message says how to write it.
    #[test]
    fn names_what_is_wrong() {
        let unknown =
            |key| format!("unknown key {key:?}; write key=value,... with the keys one, two");
        assert_eq!(refused("three=3"), unknown("three"));
        assert_eq!(refused("one=1,,two=2"), unknown(""));
        assert_eq!(refused(""), unknown(""));
        assert_eq!(refused("=1"), unknown(""));
        assert_eq!(refused("One=1"), unknown("One"));
        assert_eq!(refused("512M"), unknown("512M"));
        assert_eq!(refused("one"), "one has no value; write one=VALUE");
        assert_eq!(refused("one=,two=2"), "one has no value; write one=VALUE");
        assert_eq!(refused("one=1,two=2,one=1"), "one is given twice");
        let list = KeyValues::parse("two=x", &KNOWN).unwrap();
        let missing = list.required("one", str::parse::<u8>).unwrap_err().to_string();
        assert_eq!(missing, "one is missing; write one=VALUE");
        let bad = list.required("two", str::parse::<u8>).unwrap_err().to_string();
        assert_eq!(bad, "two=x: invalid digit found in string");
    }
}
