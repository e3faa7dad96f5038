//! Typed values that clients pass: `input-NAME` of the configuration, `NAME=VALUE` of a request.
//!
//! A value is data. It reaches a script as `INPUT_NAME`, never as part of a command line, and
//! only when it is valid as a whole.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use regex_lite::{Regex, RegexBuilder};

use super::diag::{printable, quote};
use super::model::{Input, InputKind, Program};
use super::values::Bad;

/// The environment variable that carries the input `name`: `INPUT_` and the name in capitals,
/// with `_` for `-`. Different inputs have different variables.
#[must_use]
pub fn variable(name: &str) -> String {
    format!("INPUT_{}", name.to_ascii_uppercase().replace('-', "_"))
}

/// Memory that a compiled pattern may take, in bytes; it also bounds the time of a match.
const PATTERN_SIZE: usize = 1 << 20;

const FORMS: &str = "write `text`, `text ^PATTERN$`, `flag`, `choice WORD WORD`, or `int 1..10`, \
                     and `default VALUE` behind it if it is not required";

/// Reads `text [^PATTERN$]`, `flag`, `choice a b c` or `int 1..10`, each with `default VALUE`.
pub(super) fn parse(name: &str, value: &str) -> Result<Input, Bad> {
    let (kind, rest) = value.split_once(char::is_whitespace).unwrap_or((value, ""));
    let rest = rest.trim();
    let (rest, default) = split_default(rest);
    let kind = match kind {
        "text" => InputKind::Text(if rest.is_empty() {
            None
        } else {
            Some(pattern(rest)?)
        }),
        "flag" if rest.is_empty() => InputKind::Flag,
        "flag" => {
            return Err(Bad::new(
                format!("{} after `flag`", quote(rest)),
                "write `flag` alone",
            ));
        }
        "choice" => choice(rest)?,
        "int" => range(rest)?,
        _ => {
            return Err(Bad::new(
                format!("{} is not a type of input", quote(kind)),
                FORMS,
            ));
        }
    };
    let default = default.map(str::to_owned);
    if let Some(default) = &default
        && !accepts(&kind, default)
    {
        let message = format!("the default {} is not valid itself", quote(default));
        return Err(Bad::new(message, format!("it has to be {}", Valid(&kind))));
    }
    let default = match kind {
        InputKind::Flag => default.or_else(|| Some("no".to_owned())),
        _ => default,
    };
    Ok(Input {
        name: name.to_owned(),
        kind,
        default,
    })
}

/// Splits at the first word `default`; nothing behind it is the empty text.
fn split_default(rest: &str) -> (&str, Option<&str>) {
    let mut from = 0;
    while let Some(found) = rest[from..].find("default") {
        let (at, end) = (from + found, from + found + "default".len());
        let before = rest[..at]
            .chars()
            .next_back()
            .is_none_or(char::is_whitespace);
        let after = rest[end..].chars().next().is_none_or(char::is_whitespace);
        if before && after {
            return (rest[..at].trim(), Some(rest[end..].trim()));
        }
        from = end;
    }
    (rest, None)
}

fn pattern(text: &str) -> Result<Regex, Bad> {
    if !(text.starts_with('^') && text.ends_with('$')) {
        let message = format!(
            "the pattern {} does not begin with `^` and end with `$`",
            quote(text)
        );
        return Err(Bad::new(message, FORMS));
    }
    let compile = |text: &str| {
        RegexBuilder::new(text)
            .size_limit(PATTERN_SIZE)
            .build()
            .map_err(|e| {
                let message = format!(
                    "{} is not a pattern: {}",
                    quote(text),
                    printable(&e.to_string())
                );
                Bad::new(
                    message,
                    "a pattern is a regular expression, without back-references",
                )
            })
    };
    // Alone first: `^a)|(b$` would break out of the group that anchors it.
    compile(text)?;
    compile(&format!("{BEGIN}{text}{END}"))
}

/// What anchors a pattern at both ends of the value, whatever alternatives it has.
const BEGIN: &str = r"\A(?:";
const END: &str = r")\z";

/// The pattern as the configuration has it.
fn as_written(pattern: &Regex) -> &str {
    let text = pattern.as_str();
    text.strip_prefix(BEGIN)
        .and_then(|t| t.strip_suffix(END))
        .unwrap_or(text)
}

fn choice(rest: &str) -> Result<InputKind, Bad> {
    let words: Vec<String> = rest.split_whitespace().map(str::to_owned).collect();
    if words.is_empty() {
        return Err(Bad::new(
            "there is nothing to choose from",
            "write `choice WORD WORD`",
        ));
    }
    let mut seen = BTreeSet::new();
    for word in &words {
        if !seen.insert(word) {
            return Err(Bad::new(
                format!("{} stands here twice", quote(word)),
                "remove one",
            ));
        }
    }
    Ok(InputKind::Choice(words))
}

fn range(rest: &str) -> Result<InputKind, Bad> {
    let bad = || {
        Bad::new(
            format!("{} is not a range", quote(rest)),
            "write `int 1..10`",
        )
    };
    let (low, high) = rest.split_once("..").ok_or_else(bad)?;
    let low = integer(low.trim()).ok_or_else(bad)?;
    let high = integer(high.trim()).ok_or_else(bad)?;
    if low > high {
        return Err(Bad::new(
            format!("nothing lies in {}", quote(rest)),
            "the smaller number comes first",
        ));
    }
    Ok(InputKind::Int(low, high))
}

/// A number in its one usual form: a shell would read `010` as eight.
fn integer(text: &str) -> Option<i64> {
    text.parse::<i64>().ok().filter(|n| n.to_string() == text)
}

/// Whether `value` is valid for an input.
#[must_use]
pub fn accepts(kind: &InputKind, value: &str) -> bool {
    match kind {
        InputKind::Text(pattern) => {
            let controls = |c: char| {
                c.is_control()
                    && !pattern
                        .as_ref()
                        .is_some_and(|p| c != '\0' && names(as_written(p), c))
            };
            !value.contains(controls) && pattern.as_ref().is_none_or(|p| p.is_match(value))
        }
        InputKind::Flag => matches!(value, "yes" | "no"),
        InputKind::Choice(words) => words.iter().any(|w| w == value),
        InputKind::Int(low, high) => integer(value).is_some_and(|n| (*low..=*high).contains(&n)),
    }
}

/// Whether a pattern names the control character `c` by an escape (`\n`, `\t`, `\x1b`). That
/// `.` or `[^/]` would match it too is not enough: hardly anybody means that.
fn names(pattern: &str, c: char) -> bool {
    let mut rest = pattern.chars();
    while let Some(first) = rest.next() {
        if first != '\\' {
            continue;
        }
        let digits = |n: usize| rest.as_str().get(1..=n).map(str::to_owned);
        let hex = match rest.clone().next() {
            Some('n') => Some("a".to_owned()),
            Some('t') => Some("9".to_owned()),
            Some('r') => Some("d".to_owned()),
            Some('f') => Some("c".to_owned()),
            Some('v') => Some("b".to_owned()),
            Some('a') => Some("7".to_owned()),
            Some('x' | 'u' | 'U') if rest.as_str()[1..].starts_with('{') => {
                rest.as_str().split(['{', '}']).nth(1).map(str::to_owned)
            }
            Some('x') => digits(2),
            Some('u') => digits(4),
            Some('U') => digits(8),
            _ => None,
        };
        if hex.and_then(|h| u32::from_str_radix(&h, 16).ok()) == Some(u32::from(c)) {
            return true;
        }
        rest.next();
    }
    false
}

/// Says which values are valid.
struct Valid<'a>(&'a InputKind);

impl fmt::Display for Valid<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            InputKind::Text(None) => f.write_str("text without control characters"),
            InputKind::Text(Some(p)) => write!(f, "text that matches {}", printable(as_written(p))),
            InputKind::Flag => f.write_str("yes or no"),
            InputKind::Choice(words) => write!(f, "one of {}", printable(&words.join(", "))),
            InputKind::Int(low, high) => write!(f, "a whole number from {low} to {high}"),
        }
    }
}

/// One thing wrong with the inputs of a request. Names and values are printable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InputProblem {
    /// The program has no such input.
    Unknown {
        /// What the client called it.
        name: String,
        /// The inputs there are.
        known: Vec<String>,
    },
    /// A required input is not there.
    Missing {
        /// Its name.
        name: String,
        /// Which values would be valid.
        valid: String,
    },
    /// A value that is not valid.
    Invalid {
        /// The input's name.
        name: String,
        /// The value, cut if it is long.
        value: String,
        /// Which values would be valid.
        valid: String,
    },
}

impl fmt::Display for InputProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown { name, known } if known.is_empty() => {
                write!(f, "there is no input {name}; this program takes none")
            }
            Self::Unknown { name, known } => {
                write!(
                    f,
                    "there is no input {name}; this program takes {}",
                    known.join(", ")
                )
            }
            Self::Missing { name, valid } => write!(f, "the input {name} is missing: {valid}"),
            Self::Invalid { name, value, valid } => {
                write!(
                    f,
                    "the input {name} cannot be {value}: it has to be {valid}"
                )
            }
        }
    }
}

/// Everything wrong with the inputs of a request, at least one thing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InputError {
    /// Unknown ones first, then in the order of the configuration.
    pub problems: Vec<InputProblem>,
}

impl fmt::Display for InputError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, problem) in self.problems.iter().enumerate() {
            write!(f, "{}{problem}", if n == 0 { "" } else { "; " })?;
        }
        Ok(())
    }
}

impl std::error::Error for InputError {}

/// Checks what a client passed, and fills in defaults: one valid value for every input of the
/// program, by name.
///
/// # Errors
/// Names every unknown, missing and invalid input at once.
pub fn validate_inputs(
    program: &Program,
    given: &BTreeMap<String, String>,
) -> Result<BTreeMap<String, String>, InputError> {
    let known = || program.inputs.iter().map(|i| i.name.clone());
    let mut problems: Vec<_> = given
        .keys()
        .filter(|name| !known().any(|k| k == **name))
        .map(|name| InputProblem::Unknown {
            name: quote(name),
            known: known().collect(),
        })
        .collect();
    let mut values = BTreeMap::new();
    for input in &program.inputs {
        let (name, valid) = (input.name.clone(), Valid(&input.kind).to_string());
        match given.get(&name).or(input.default.as_ref()) {
            Some(value) if accepts(&input.kind, value) => {
                values.insert(name, value.clone());
            }
            Some(value) => {
                problems.push(InputProblem::Invalid {
                    name,
                    value: quote(value),
                    valid,
                });
            }
            None => problems.push(InputProblem::Missing { name, valid }),
        }
    }
    if problems.is_empty() {
        Ok(values)
    } else {
        Err(InputError { problems })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn input(value: &str) -> Input {
        parse("x", value).unwrap_or_else(|bad| panic!("{value}: {bad:?}"))
    }

    fn takes(value: &str, text: &str) -> bool {
        accepts(&input(value).kind, text)
    }

    #[test]
    fn the_four_types_and_their_defaults() {
        let branch = input(r"text ^[\w./-]{1,80}$ default master");
        assert_eq!(branch.default.as_deref(), Some("master"));
        assert!(accepts(&branch.kind, "feature/x-1"));
        assert!(!accepts(&branch.kind, "a b"));
        assert_eq!(input("flag").default.as_deref(), Some("no"));
        assert_eq!(input("flag default yes").default.as_deref(), Some("yes"));
        assert_eq!(
            input("choice a b  c default b").kind,
            InputKind::Choice(vec!["a".into(), "b".into(), "c".into()])
        );
        assert_eq!(input("choice a b").default, None);
        assert_eq!(input("int -5..10").kind, InputKind::Int(-5, 10));
        assert_eq!(input("text default a b").default.as_deref(), Some("a b"));
        assert_eq!(input("text default").default.as_deref(), Some(""));
        assert_eq!(input("text ^default-x$").default, None);
    }

    #[test]
    fn bad_definitions_are_refused() {
        for bad in [
            "",
            "txt",
            "Flag",
            "flag x",
            "choice",
            "choice a a",
            "choice a b default c",
            "int",
            "int 5",
            "int 5..1",
            "int 1..x",
            "int 01..5",
            "int +1..5",
            "int 1..5 default 6",
            "flag default maybe",
            "text foo",
            "text ^foo",
            "text foo$",
            "text ^(foo$",
            "text ^a)|(b$",
            "text ^[a-z]$ default 5",
            "text defualt master",
            "text ^(?x)a # $",
            r"text ^(a{1000}){1000}$",
        ] {
            assert!(parse("x", bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn patterns_match_the_whole_value_whatever_they_contain() {
        for (pattern, good, bad) in [
            ("text ^a|b$", "b", "ab"),
            ("text ^a|ab$", "ab", "abc"),
            ("text ^(?m)a$", "a", "a\nb"),
            ("text ^a$", "a", "a\n"),
            (r"text ^a\n?$", "a\n", "a\n\n"),
            ("text ^(?i)a$", "A", "AA"),
        ] {
            assert!(takes(pattern, good), "{pattern}");
            assert!(!takes(pattern, bad), "{pattern}");
        }
    }

    #[test]
    fn control_characters_pass_only_where_a_pattern_names_them() {
        assert!(!takes("text", "a\nb") && !takes("text", "\u{1b}[2J") && takes("text", "ä b"));
        assert!(!takes("text ^[^/]*$", "a\nb"));
        assert!(!takes(r"text ^[\s\S]*$", "a\tb"));
        assert!(takes(r"text ^[a-z\n]*$", "a\nb"));
        assert!(!takes(r"text ^[a-z\\n\s]*$", "a\nb"));
        for pattern in [
            r"text ^[a\x1b]*$",
            r"text ^[a\x{1b}]*$",
            r"text ^[a\u001b]*$",
        ] {
            assert!(takes(pattern, "a\u{1b}"), "{pattern}");
        }
        assert!(!takes(r"text ^[\x00a]*$", "a\0"));
    }

    #[test]
    fn numbers_have_one_form() {
        for bad in ["010", "+5", "-0", " 5", "5 ", "", "0x5", "11", "-1", "5.0"] {
            assert!(!takes("int 0..10", bad), "{bad:?}");
        }
        assert!(takes("int 0..10", "10") && takes("int -5..-1", "-5"));
    }

    fn program(inputs: &[(&str, &str)]) -> Program {
        Program {
            inputs: inputs.iter().map(|(n, v)| parse(n, v).unwrap()).collect(),
            ..super::super::draft::default_program()
        }
    }

    fn given(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect()
    }

    #[test]
    fn everything_wrong_with_a_request_is_said_at_once() {
        let p = program(&[
            ("branch", "text ^[a-z]+$"),
            ("docs", "flag"),
            ("env", "choice staging production"),
        ]);
        let e = validate_inputs(
            &p,
            &given(&[("docs", "maybe"), ("env", "x\u{1b}"), ("what\n", "1")]),
        )
        .unwrap_err();
        assert_eq!(
            e.to_string(),
            "there is no input `what\\n`; this program takes branch, docs, env; \
             the input branch is missing: text that matches ^[a-z]+$; \
             the input docs cannot be `maybe`: it has to be yes or no; \
             the input env cannot be `x\\u{1b}`: it has to be one of staging, production"
        );
    }

    #[test]
    fn defaults_are_filled_in() {
        let p = program(&[
            ("branch", "text default master"),
            ("docs", "flag"),
            ("n", "int 1..3"),
        ]);
        let values = validate_inputs(&p, &given(&[("n", "2")])).unwrap();
        assert_eq!(
            values,
            given(&[("branch", "master"), ("docs", "no"), ("n", "2")])
        );
    }

    #[test]
    fn a_program_without_inputs_takes_none() {
        let e = validate_inputs(&program(&[]), &given(&[("a", "b")])).unwrap_err();
        assert_eq!(
            e.to_string(),
            "there is no input `a`; this program takes none"
        );
    }

    proptest! {
        #[test]
        fn different_inputs_have_different_variables(a in "[a-z][a-z0-9-]{0,6}", b in "[a-z][a-z0-9-]{0,6}") {
            prop_assert_eq!(a == b, variable(&a) == variable(&b));
        }

        #[test]
        fn no_definition_or_value_panics(
            definition in r"(text|flag|choice|int) [\^a-z$.\\|(){}\[\]0-9 -]{0,16}( default)?( [a-z]{0,3})?|\PC{0,20}",
            value in r"(?s).{0,12}",
        ) {
            if let Ok(input) = parse("x", &definition) {
                let valid = accepts(&input.kind, &value);
                prop_assert!(!(valid && value.contains('\0')));
            }
        }
    }
}
