//! The syntax of xl's domain configuration files, as far as pvlab needs it (xl.cfg(5)).
//!
//! Owns the parser and the settings it found, each with its line. The text itself is kept as it is:
//! what is handed to `xl create` is the person's file plus lines appended to it, never a rewrite.
//! It does not know what a key means to xl.

use std::fmt;

/// A parsed configuration file.
#[derive(Clone, Debug)]
pub struct XlConfig {
    file: String,
    text: String,
    settings: Vec<Setting>,
}

#[derive(Clone, Debug)]
struct Setting {
    key: String,
    value: Value,
    line: usize,
}

/// A setting's value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// A quoted string, without its quotes.
    Text(String),
    /// A number: decimal, or hexadecimal after `0x`.
    Integer(u64),
    /// `[ ... ]`.
    List(Vec<Value>),
}

/// What is wrong with a configuration file, where, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{file}:{line}: {what}; {remedy}")]
pub struct ConfigError {
    /// The file, as it was named to the parser.
    pub file: String,
    /// The line, from 1.
    pub line: usize,
    /// What is wrong.
    pub what: String,
    /// What to write instead.
    pub remedy: String,
}

impl XlConfig {
    /// Reads `text`; `file` is the name used in errors.
    ///
    /// ```
    /// use pvlab::scenario::XlConfig;
    ///
    /// let config = XlConfig::parse("a.cfg", "name = \"a\"  # a comment\nvcpus = 4\n").unwrap();
    /// assert_eq!(config.text_of("name").unwrap(), "a");
    /// assert_eq!(config.integer_of("vcpus").unwrap(), 4);
    ///
    /// let error = XlConfig::parse("a.cfg", "\nvcpus = four\n").unwrap_err();
    /// assert!(error.to_string().starts_with("a.cfg:2: "));
    /// ```
    ///
    /// # Errors
    ///
    /// At the first place that is not `KEY=VALUE`, a comment or an empty line.
    pub fn parse(file: &str, text: &str) -> Result<XlConfig, ConfigError> {
        // xl knows no other line end, and no mark before the first line, as editors of Windows
        // write one.
        let text = text.strip_prefix('\u{feff}').unwrap_or(text).replace("\r\n", "\n");
        let mut parser = Parser { file, rest: &text, line: 1 };
        let mut settings = Vec::new();
        while let Some(setting) = parser.setting()? {
            settings.push(setting);
        }
        Ok(XlConfig { file: file.to_owned(), text, settings })
    }

    /// The file's name, as it was given to [`parse`](Self::parse).
    pub fn file(&self) -> &str {
        &self.file
    }

    /// The text as it was read, its lines ended as in Unix, without a byte order mark.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The value of `key`; of several, the last, as in xl.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.setting(key).map(|setting| &setting.value)
    }

    /// The string under `key`.
    ///
    /// # Errors
    ///
    /// If it is missing or not a string.
    pub fn text_of(&self, key: &str) -> Result<&str, ConfigError> {
        match self.required(key, "\"...\"")? {
            Setting { value: Value::Text(text), .. } => Ok(text),
            setting => Err(self.wrong_kind(setting, "a string", "\"...\"")),
        }
    }

    /// The number under `key`.
    ///
    /// # Errors
    ///
    /// If it is missing or not a number.
    pub fn integer_of(&self, key: &str) -> Result<u64, ConfigError> {
        match self.required(key, "NUMBER")? {
            Setting { value: Value::Integer(number), .. } => Ok(*number),
            setting => Err(self.wrong_kind(setting, "a number", "NUMBER")),
        }
    }

    /// An error about the setting `key`, at its line.
    pub fn error(
        &self,
        key: &str,
        what: impl fmt::Display,
        remedy: impl fmt::Display,
    ) -> ConfigError {
        let end = self.text.lines().count().max(1);
        ConfigError {
            file: self.file.clone(),
            line: self.setting(key).map_or(end, |setting| setting.line),
            what: what.to_string(),
            remedy: remedy.to_string(),
        }
    }

    fn setting(&self, key: &str) -> Option<&Setting> {
        self.settings.iter().rev().find(|setting| setting.key == key)
    }

    fn required(&self, key: &str, form: &str) -> Result<&Setting, ConfigError> {
        self.setting(key).ok_or_else(|| {
            self.error(key, format!("`{key}` is missing"), format!("add a line `{key} = {form}`"))
        })
    }

    fn wrong_kind(&self, setting: &Setting, kind: &str, form: &str) -> ConfigError {
        let key = &setting.key;
        self.error(key, format!("`{key}` is not {kind}"), format!("write `{key} = {form}`"))
    }
}

struct Parser<'a> {
    file: &'a str,
    rest: &'a str,
    line: usize,
}

impl<'a> Parser<'a> {
    fn setting(&mut self) -> Result<Option<Setting>, ConfigError> {
        self.skip_blank(true);
        while self.rest.starts_with(';') {
            self.bump(1);
            self.skip_blank(true);
        }
        if self.rest.is_empty() {
            return Ok(None);
        }
        let line = self.line;
        let key = self.word();
        if key.is_empty() {
            return Err(self.error(
                format!("a setting cannot begin with {}", self.here()),
                "write `KEY = VALUE`, or put `#` before a comment",
            ));
        }
        self.skip_blank(false);
        if !self.rest.starts_with('=') {
            let remedy = format!("write `{key} = VALUE`");
            return Err(
                self.error(format!("expected `=` after `{key}`, found {}", self.here()), remedy)
            );
        }
        self.bump(1);
        self.skip_blank(false);
        let value = self.value()?;
        self.skip_blank(false);
        if !(self.rest.is_empty() || self.rest.starts_with(['\n', ';'])) {
            return Err(self.error(
                format!("unexpected {} after the value of `{key}`", self.here()),
                "put each setting on a line of its own",
            ));
        }
        Ok(Some(Setting { key: key.to_owned(), value, line }))
    }

    fn value(&mut self) -> Result<Value, ConfigError> {
        match self.rest.chars().next() {
            Some(quote @ ('"' | '\'')) => self.quoted(quote),
            Some('[') => self.list(),
            Some('0'..='9') => self.integer(),
            _ => Err(self.error(
                format!("expected a value, found {}", self.here()),
                "write a number, a \"string\" in quotes, or a [ list ]",
            )),
        }
    }

    fn quoted(&mut self, quote: char) -> Result<Value, ConfigError> {
        let body = &self.rest[1..];
        let end = body.find([quote, '\n']).filter(|&at| body[at..].starts_with(quote));
        let Some(end) = end else {
            return Err(self.error(
                "the string has no end",
                format!("close it with {quote} on the same line"),
            ));
        };
        let text = &body[..end];
        if text.contains('\\') {
            return Err(
                self.error("the string has a backslash in it", "write the characters themselves")
            );
        }
        self.bump(end + 2);
        Ok(Value::Text(text.to_owned()))
    }

    fn integer(&mut self) -> Result<Value, ConfigError> {
        let digits = self.peek_word();
        let number = match digits.strip_prefix("0x") {
            Some(hex) => u64::from_str_radix(hex, 16),
            None => digits.parse(),
        };
        match number {
            Ok(number) => {
                self.bump(digits.len());
                Ok(Value::Integer(number))
            }
            Err(_) => Err(self
                .error(format!("`{digits}` is not a number"), "write digits, or put it in quotes")),
        }
    }

    fn list(&mut self) -> Result<Value, ConfigError> {
        let opened = self.line;
        self.bump(1);
        let mut values = Vec::new();
        loop {
            self.skip_blank(true);
            if self.rest.starts_with(']') {
                self.bump(1);
                return Ok(Value::List(values));
            }
            if self.rest.is_empty() {
                return Err(self.error(
                    format!("the list begun in line {opened} has no end"),
                    "close it with `]`",
                ));
            }
            values.push(self.value()?);
            self.skip_blank(true);
            if self.rest.starts_with(',') {
                self.bump(1);
            } else if !self.rest.starts_with(']') {
                return Err(self.error(
                    format!("expected `,` or `]` in the list, found {}", self.here()),
                    "put a comma between two values",
                ));
            }
        }
    }

    fn peek_word(&self) -> &'a str {
        let end = self
            .rest
            .find(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
            .unwrap_or(self.rest.len());
        &self.rest[..end]
    }

    fn word(&mut self) -> &'a str {
        let word = self.peek_word();
        self.bump(word.len());
        word
    }

    /// Spaces and comments; line ends too if `lines`.
    fn skip_blank(&mut self, lines: bool) {
        loop {
            // What xl takes for a blank, and nothing else.
            let blank = self.rest.find(|c| !(matches!(c, ' ' | '\t') || (c == '\n' && lines)));
            self.bump(blank.unwrap_or(self.rest.len()));
            if !self.rest.starts_with('#') {
                return;
            }
            self.bump(self.rest.find('\n').unwrap_or(self.rest.len()));
        }
    }

    fn bump(&mut self, bytes: usize) {
        let (passed, rest) = self.rest.split_at(bytes);
        self.line += passed.matches('\n').count();
        self.rest = rest;
    }

    fn here(&self) -> String {
        match self.rest.chars().next() {
            None => "the end of the file".to_owned(),
            Some('\n') => "the end of the line".to_owned(),
            Some(c) if c.is_ascii_alphanumeric() => format!("`{}`", self.peek_word()),
            Some(c) if c.is_control() || c.is_whitespace() => format!("`{}`", c.escape_unicode()),
            Some(c) => format!("`{c}`"),
        }
    }

    fn error(&self, what: impl Into<String>, remedy: impl Into<String>) -> ConfigError {
        ConfigError {
            file: self.file.to_owned(),
            line: self.line,
            what: what.into(),
            remedy: remedy.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> ConfigError {
        XlConfig::parse("x.cfg", text).unwrap_err()
    }

    #[test]
    fn every_form_of_value_is_read() {
        let text = "# head\nname=\"g\" ; vcpus = 0x4\ndisk = [ 'a,w', # one\n 'b' ,\n]\nempty=[]\n";
        let config = XlConfig::parse("x.cfg", text).unwrap();
        let list = Value::List(vec![Value::Text("a,w".into()), Value::Text("b".into())]);
        assert_eq!(config.get("name"), Some(&Value::Text("g".into())));
        assert_eq!(config.get("vcpus"), Some(&Value::Integer(4)));
        assert_eq!(config.get("disk"), Some(&list));
        assert_eq!(config.get("empty"), Some(&Value::List(vec![])));
        assert_eq!(config.text(), text);
    }

    #[test]
    fn the_last_of_two_values_counts_as_in_xl() {
        let config = XlConfig::parse("x.cfg", "a=1\na=2\n").unwrap();
        assert_eq!(config.integer_of("a"), Ok(2));
    }

    #[test]
    fn line_ends_of_other_systems_are_read_and_not_handed_on() {
        let config = XlConfig::parse("x.cfg", "a=\"b\"\r\n# c\r\n\r\nvcpus=2\r\n").unwrap();
        assert_eq!((config.text_of("a"), config.integer_of("vcpus")), (Ok("b"), Ok(2)));
        assert_eq!(config.text(), "a=\"b\"\n# c\n\nvcpus=2\n");
        let config = XlConfig::parse("x.cfg", "\u{feff}a=1\r\n").unwrap();
        assert_eq!(config.text(), "a=1\n");
    }

    #[test]
    fn errors_name_the_line_and_the_remedy() {
        for (text, line, word) in [
            ("name \"g\"", 1, "`=`"),
            ("\n\nname = g\n", 3, "quotes"),
            ("a=1\nb=\"open\n", 2, "close it"),
            ("a=1\nb=[1, 2\nc=3\n", 3, "comma"),
            ("a=[1,\n\n", 3, "close it with `]`"),
            ("a=12ab", 1, "digits"),
            ("a=1 b=2", 1, "line of its own"),
            ("=1", 1, "KEY = VALUE"),
            ("a=1\rb=2", 1, "`\\u{d}`"),
            ("a=1\n\u{a0}b=2", 2, "`\\u{a0}`"),
            ("a=99999999999999999999", 1, "not a number"),
        ] {
            let error = error(text);
            assert_eq!(error.line, line, "{error}");
            assert!(error.to_string().contains(word), "{error}");
        }
    }

    #[test]
    fn a_missing_or_mistyped_key_says_what_to_write() {
        let config = XlConfig::parse("x.cfg", "a=1\n\nvcpus=\"4\"\n").unwrap();
        let missing = config.text_of("name").unwrap_err().to_string();
        assert!(missing.contains("x.cfg:3: `name` is missing; add a line"), "{missing}");
        let mistyped = config.integer_of("vcpus").unwrap_err().to_string();
        assert!(mistyped.contains("x.cfg:3: `vcpus` is not a number"), "{mistyped}");
    }
}
