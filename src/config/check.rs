//! What a configuration means: from scanned lines to a [`Config`], or to every reason why not.
//!
//! Of same-named sections and of same-named keys only the last counts; what is overridden is
//! warned of and not looked at. A program begins with the global values and every key of its
//! section replaces the one of the same name, that one alone.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry as MapEntry;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::diag::{Code, Diagnostic, Place, Report, Severity, quote, render};
use super::draft::{Draft, Reader, default_global};
use super::ini::{Entry, Header, Section, scan};
use super::keys::{self, Key, Scope};
use super::lists::Lists;
use super::model::{Config, Global, KillMode, Program};
pub use super::people::Names;
use super::remote::{self, Remote};
use crate::ids::{ActionName, IdError, ProgramName};

/// What a configuration text says, and everything there is to say about it.
#[derive(Debug, Clone, PartialEq)]
pub struct Checked {
    /// The file's name as it is shown.
    pub path: PathBuf,
    /// The configuration; none if there is an error.
    pub config: Option<Config>,
    /// Errors and warnings, in the order of the file.
    pub diagnostics: Vec<Diagnostic>,
    /// The text the diagnostics speak of.
    source: String,
}

impl Checked {
    /// The diagnostics as people read them; empty if there are none.
    #[must_use]
    pub fn render(&self, colour: bool) -> String {
        render(
            &self.path.to_string_lossy(),
            &self.source,
            &self.diagnostics,
            colour,
        )
    }

    /// How many errors and how many warnings there are.
    #[must_use]
    pub fn counts(&self) -> (usize, usize) {
        let errors = self
            .diagnostics
            .iter()
            .filter(|d| d.severity == Severity::Error)
            .count();
        (errors, self.diagnostics.len() - errors)
    }
}

/// Checks a configuration text. `path` is only shown. `is_root` is whether the daemon that will
/// use it runs as root; it decides some warnings and no errors.
#[must_use]
pub fn check(text: &[u8], path: &Path, names: &dyn Names, is_root: bool) -> Checked {
    let scan = scan(text);
    let mut checker = Checker {
        names,
        is_root,
        global_lists: Vec::new(),
        sources: Vec::new(),
        after: BTreeMap::new(),
        report: Report {
            diagnostics: scan.diagnostics,
        },
    };
    let config = checker.document(&scan.document.sections);
    let mut diagnostics = checker.report.diagnostics;
    diagnostics.sort_by_key(|d| (d.line, d.col));
    let usable = diagnostics.iter().all(|d| d.severity != Severity::Error);
    Checked {
        path: path.to_owned(),
        config: usable.then_some(config),
        diagnostics,
        source: scan.source,
    }
}

/// Goes through a document and collects what there is to say about it.
struct Checker<'a> {
    names: &'a dyn Names,
    is_root: bool,
    /// Where the global lists are.
    global_lists: Vec<Place>,
    /// Where the section at a line names its source.
    sources: Vec<(usize, Place)>,
    /// Where the section at a line says what it comes after.
    after: BTreeMap<usize, Place>,
    report: Report,
}

/// What is wrong with a key for a source of this kind.
fn misplaced(key: &Key, remote: Option<&Remote>) -> Option<&'static str> {
    let is_git = matches!(remote?, Remote::Git { .. });
    match key {
        Key::Verify | Key::Submodules if !is_git => Some(
            "is for git, and the source is an archive (`source-digest` says what that has to be)",
        ),
        Key::Digest if is_git => Some(
            "is for archives: name the whole commit behind # in `source`, or use `source-verify`",
        ),
        _ => None,
    }
}

fn place_of_key(entry: &Entry) -> Place {
    Place {
        line: entry.line,
        col: entry.key_col,
        width: entry.key.chars().count(),
    }
}

fn place_of_name(header: &Header) -> Place {
    Place {
        line: header.line,
        col: header.col,
        width: header.name.chars().count(),
    }
}

impl Checker<'_> {
    fn warning(&mut self, code: Code, at: Place, message: String, help: &str) {
        self.report.warning(code, at, message, help);
    }

    fn error(&mut self, code: Code, at: Place, message: String, help: Option<String>) {
        self.report.error(code, at, message, help);
    }

    /// Reads values; what is wrong with them goes to the same report.
    fn reader(&mut self) -> Reader<'_> {
        Reader {
            names: self.names,
            report: &mut self.report,
        }
    }

    fn document(&mut self, sections: &[Section]) -> Config {
        let mut global = default_global();
        let mut template = Draft::new();
        let mut last: BTreeMap<&str, &Section> = BTreeMap::new();
        for section in sections {
            let Some(header) = &section.header else {
                self.globals(section, &mut global, &mut template);
                continue;
            };
            if let Some(earlier) = last.insert(&header.name, section)
                && let Some(overridden) = &earlier.header
            {
                self.overridden_section(overridden, header.line);
            }
        }
        let script = template.clone().finish();
        self.warn_of_root_script(&script);
        let mut programs = BTreeMap::new();
        for section in last.into_values() {
            let Some(header) = &section.header else {
                continue;
            };
            let name = self.program_name(header);
            let program = self.program(section, header.line, &template).finish();
            if let Some(name) = name {
                self.warn_of_root(header, &program);
                self.warn_of_no_end(header, &program);
                programs.insert(name, Arc::new(program));
            }
        }
        self.order(&programs);
        self.directories(&programs);
        Config {
            global,
            programs,
            script: Arc::new(script),
            lingering: BTreeMap::new(),
        }
    }

    /// Each directory belongs to one source.
    fn directories(&mut self, programs: &BTreeMap<ProgramName, Arc<Program>>) {
        let mut owners: BTreeMap<&Path, &ProgramName> = BTreeMap::new();
        for (line, place) in self.sources.clone() {
            let found = programs.iter().find(|(_, program)| program.line == line);
            let Some((name, source)) = found.and_then(|(n, p)| Some((n, p.source.as_ref()?)))
            else {
                continue;
            };
            if let Some(other) = owners.insert(&source.deploy_dir, name) {
                let dir = source.deploy_dir.display();
                let message = format!("{name} and {other} deploy to the same directory, {dir}");
                let help = Some("give each its own `deploy-dir`".to_owned());
                self.error(Code::BadValue, place, message, help);
            }
        }
    }

    /// Programs come after others that there are, and not after themselves.
    fn order(&mut self, programs: &BTreeMap<ProgramName, Arc<Program>>) {
        for (name, program) in programs {
            let Some(place) = self.after.get(&program.line).copied() else {
                continue;
            };
            let known =
                |first: &&ProgramName| !programs.get(*first).is_some_and(|p| p.is_supervised());
            if let Some(missing) = program.after.iter().find(known) {
                let message = format!("there is no supervised program {missing}");
                let help = Some("name sections with a cmd-start".to_owned());
                self.error(Code::BadValue, place, message, help);
            }
            // Along everything that has to be up first, back to the program itself.
            let mut ahead: Vec<Vec<&ProgramName>> =
                program.after.iter().map(|first| vec![first]).collect();
            let mut seen: Vec<&ProgramName> = Vec::new();
            while let Some(path) = ahead.pop() {
                let Some(last) = path.last().copied() else {
                    continue;
                };
                if last == name {
                    let way: Vec<&str> = path.iter().map(|n| n.as_str()).collect();
                    let message = format!("{name} comes after itself: {name}, {}", way.join(", "));
                    let help = Some("remove one of these from `after`".to_owned());
                    self.error(Code::BadValue, place, message, help);
                    break;
                }
                if seen.contains(&last) {
                    continue;
                }
                seen.push(last);
                for next in programs
                    .get(last)
                    .map(|p| p.after.as_slice())
                    .unwrap_or_default()
                {
                    let mut path = path.clone();
                    path.push(next);
                    ahead.push(path);
                }
            }
        }
    }

    fn overridden_section(&mut self, header: &Header, by: usize) {
        if !header.damaged {
            let message = format!("{} does not count", bracketed(header));
            let help = format!("line {by} begins a section of the same name: the last one counts");
            self.warning(Code::Overridden, place_of_name(header), message, &help);
        }
    }

    fn program_name(&mut self, header: &Header) -> Option<ProgramName> {
        if header.damaged {
            return None;
        }
        let Some(name) = header.name.strip_prefix("prog-") else {
            let message = format!("unknown section {}", bracketed(header));
            let help = Some(section_meant(&header.name));
            self.error(Code::UnknownSection, place_of_name(header), message, help);
            return None;
        };
        match ProgramName::new(name) {
            Ok(name) => Some(name),
            Err(e) => {
                let at = Place {
                    line: header.line,
                    col: header.col + "prog-".len(),
                    width: name.chars().count(),
                };
                let (message, help) = match e {
                    IdError::Empty => {
                        ("a program without a name".to_owned(), "write `[prog-NAME]`")
                    }
                    e => (
                        format!("the program name {} {e}", quote(name)),
                        "choose another name",
                    ),
                };
                self.error(Code::BadProgramName, at, message, Some(help.to_owned()));
                None
            }
        }
    }

    /// The keys of a section that count, in the order of the file.
    fn keys<'s>(&mut self, section: &'s Section, place: Scope) -> Vec<(Key, &'s Entry)> {
        let mut last: BTreeMap<Key, &Entry> = BTreeMap::new();
        for entry in &section.entries {
            let key = match keys::lookup(&entry.key, place) {
                Ok(key) => key,
                Err(e) => {
                    if !entry.damaged {
                        self.error(e.code, place_of_key(entry), e.message, e.help);
                    }
                    continue;
                }
            };
            match last.entry(key) {
                MapEntry::Vacant(slot) => {
                    slot.insert(entry);
                }
                MapEntry::Occupied(mut slot) => {
                    let earlier = slot.insert(entry);
                    let message = format!("{} does not count", quote(&earlier.key));
                    let help = format!(
                        "line {} sets {}: the last one counts",
                        entry.line,
                        if earlier.key == entry.key {
                            "it again"
                        } else {
                            "the same"
                        },
                    );
                    self.warning(Code::Overridden, place_of_key(earlier), message, &help);
                }
            }
        }
        let mut keys: Vec<_> = last
            .into_iter()
            .filter(|(_, entry)| !entry.damaged)
            .collect();
        keys.sort_by_key(|(_, entry)| entry.line);
        keys
    }

    /// Whether a value is there at all; reports if not. Only the environment has empty values.
    fn has_value(&mut self, key: &Key, entry: &Entry) -> bool {
        if !entry.value.is_empty() || matches!(key, Key::Env(_)) {
            return true;
        }
        let help = match key {
            Key::AllowUid | Key::AllowGid | Key::UidAction(_) | Key::GidAction(_) => {
                "write `none` to allow nobody but root"
            }
            _ => "write one, or remove the line",
        };
        let at = Place {
            line: entry.line,
            col: entry.value_col,
            width: 1,
        };
        let message = format!("{} has no value", quote(&entry.key));
        self.error(Code::NoValue, at, message, Some(help.to_owned()));
        false
    }

    fn globals(&mut self, section: &Section, global: &mut Global, template: &mut Draft) {
        let mut trust = Vec::new();
        for (key, entry) in self.keys(section, Scope::Global) {
            if matches!(key, Key::AllowUid | Key::AllowGid) {
                self.global_lists.push(place_of_key(entry));
            }
            if matches!(
                key,
                Key::HttpTrustUid | Key::HttpTrustAddress | Key::HttpUserHeader
            ) {
                trust.push((key.clone(), place_of_key(entry)));
            }
            if self.has_value(&key, entry) && !self.reader().daemon_key(&key, entry, global) {
                self.reader().program_key(key, entry, template);
            }
        }
        // One without the other does nothing, which nobody wants who writes it.
        let header = trust.iter().any(|(key, _)| *key == Key::HttpUserHeader);
        if trust
            .iter()
            .all(|(key, _)| (*key == Key::HttpUserHeader) == header)
        {
            for (_, at) in trust {
                let message = match header {
                    true => "nobody is trusted to send that header",
                    false => "nothing is believed without `http-user-header`",
                };
                let help =
                    "write `http-user-header` and one of `http-trust-uid`, `http-trust-address`";
                self.warning(Code::NoEffect, at, message.to_owned(), help);
            }
        }
    }

    fn program(&mut self, section: &Section, line: usize, template: &Draft) -> Draft {
        let mut draft = template.clone();
        draft.program.line = line;
        let keys = self.keys(section, Scope::Program);
        for (key, entry) in &keys {
            if *key == Key::After {
                self.after.insert(line, place_of_key(entry));
            }
        }
        let actions: Vec<(ActionName, bool, &Entry)> = keys
            .iter()
            .filter_map(|(key, entry)| match key {
                Key::Command(action) => Some((action.clone(), true, *entry)),
                Key::UidAction(action)
                | Key::GidAction(action)
                | Key::UserAction(action)
                | Key::GroupAction(action)
                | Key::TimeoutAction(action)
                | Key::TtyAction(action)
                | Key::Schedule(action)
                | Key::Hook(action) => Some((action.clone(), false, *entry)),
                _ => None,
            })
            .collect();
        let source = keys.iter().find(|(key, _)| *key == Key::Source);
        let has_source = source.is_some();
        let remote = source.and_then(|(_, entry)| remote::parse(&entry.value).ok());
        for (key, entry) in keys {
            if !has_source && key.needs_source() {
                let message = format!("{} means nothing without a `source`", quote(&entry.key));
                self.error(Code::UnknownKey, place_of_key(entry), message, None);
            }
            if has_source && key == Key::Command(ActionName::update()) {
                let message = format!("{} has no effect: there is a `source`", quote(&entry.key));
                let help =
                    Some("remove one of them; `after-update` is for what follows".to_owned());
                self.error(Code::BadValue, place_of_key(entry), message, help);
            }
            if let Some(message) = misplaced(&key, remote.as_ref()) {
                let message = format!("{} {message}", quote(&entry.key));
                self.error(Code::BadValue, place_of_key(entry), message, None);
            }
            if key == Key::Source {
                self.sources.push((line, place_of_key(entry)));
            }
            if self.has_value(&key, entry) {
                self.reader().program_key(key, entry, &mut draft);
            }
        }
        for (action, defines, entry) in actions {
            self.action(&action, defines, entry, &draft.program);
        }
        draft
    }

    /// Whether an action that a key names is there: the daemon's, or one of the program's own.
    fn action(&mut self, action: &ActionName, defines: bool, entry: &Entry, program: &Program) {
        let of_daemon = keys::action(action.as_str()).is_some()
            || (*action == ActionName::console() && program.has_console());
        if of_daemon {
            return;
        }
        let head = entry.key.strip_suffix(action.as_str()).unwrap_or_default();
        let near = keys::misspelt_action(action.as_str());
        let meant = near.map(|near| format!("did you mean `{head}{near}`?"));
        if !defines && !program.commands.contains_key(action) {
            let message = format!("unknown key {}", quote(&entry.key));
            let help = meant.unwrap_or_else(|| format!("there is no `cmd-{action}` here"));
            self.error(Code::UnknownKey, place_of_key(entry), message, Some(help));
        } else if let (true, Some(meant)) = (defines, meant) {
            let message = format!("{} makes an action of its own", quote(&entry.key));
            self.warning(Code::NewAction, place_of_key(entry), message, &meant);
        }
    }

    fn warn_of_root(&mut self, header: &Header, program: &Program) {
        if self.any_action_is_root_for_others(program) {
            let message = format!("{} runs as root", bracketed(header));
            self.warning(
                Code::RunsAsRoot,
                place_of_name(header),
                message,
                NAME_A_USER,
            );
        }
    }

    /// Nothing would ever end it.
    fn warn_of_no_end(&mut self, header: &Header, program: &Program) {
        let script = program.command(&ActionName::stop()).is_some();
        if program.is_supervised() && program.kill_mode == KillMode::None && !script {
            let message = format!("nothing stops {}", bracketed(header));
            let help = "with `kill-mode = none` a `cmd-stop` has to";
            self.warning(Code::NoEnd, place_of_name(header), message, help);
        }
    }

    /// What [`Self::warn_of_root`] warns of, for scripts of the root directory that have no section.
    fn warn_of_root_script(&mut self, script: &Program) {
        if !self.any_action_is_root_for_others(script) {
            return;
        }
        let (users, groups) = (&script.allow.uids, &script.allow.gids);
        let line = if users.ids.is_empty() {
            groups.line
        } else {
            users.line
        };
        let place = self
            .global_lists
            .iter()
            .find(|place| place.line == line)
            .copied();
        let message = "scripts of the root directory run as root for those listed here".to_owned();
        let place = place.unwrap_or(Place {
            line,
            col: 1,
            width: 1,
        });
        self.warning(Code::RunsAsRoot, place, message, NAME_A_USER);
    }

    /// Whether somebody else can have something run as root without the file saying so.
    fn any_action_is_root_for_others(&self, program: &Program) -> bool {
        self.is_root
            && [ActionName::run()]
                .iter()
                .chain(program.commands.keys())
                .any(|action| {
                    // A line that names a user counts even if its value is an error of its own.
                    let unnamed = program.run_as(action).line == 0;
                    unnamed && Lists::of(program, action.as_str()).anybody_but_root()
                })
    }
}

const NAME_A_USER: &str = "name who it runs as: `user = NAME`, or `user = root` if that is meant";

/// A section header as the file has it.
fn bracketed(header: &Header) -> String {
    quote(&format!("[{}]", header.name))
}

/// What somebody may have meant by a section that is not `prog-NAME`.
fn section_meant(name: &str) -> String {
    let misspelt = name
        .split_once('-')
        .filter(|(head, _)| head.len() <= 8 && keys::distance(head, "prog") <= 2)
        .or_else(|| name.rsplit_once("prog-"))
        .map(|(_, name)| name);
    match (
        misspelt.and_then(|n| ProgramName::new(n).ok()),
        ProgramName::new(name),
    ) {
        (Some(name), _) => format!("did you mean `[prog-{name}]`?"),
        (None, Ok(name)) => format!(
            "the section of a program {name} is `[prog-{name}]`; \
             global keys stand before the first section"
        ),
        (None, Err(_)) => "the sections are those of programs, `[prog-NAME]`".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use std::time::Duration;

    use super::super::draft::default_program;
    use super::super::model::{Args, Limit, Resource, Retention, RunAs, RunUser};
    use super::super::people::fake::Fake;
    use super::*;
    use crate::ids::{Gid, Uid};

    fn checked(text: &str) -> Checked {
        check(text.as_bytes(), Path::new("x.cfg"), &Fake, true)
    }

    fn config(text: &str) -> Config {
        let checked = checked(text);
        checked
            .config
            .clone()
            .unwrap_or_else(|| panic!("{}", checked.render(false)))
    }

    fn program(text: &str) -> Program {
        let config = config(text);
        let program = config
            .programs
            .get(&ProgramName::new("a").unwrap())
            .unwrap();
        (**program).clone()
    }

    fn codes(text: &str) -> Vec<(usize, &'static str)> {
        checked(text)
            .diagnostics
            .iter()
            .map(|d| (d.line, d.code.as_str()))
            .collect()
    }

    fn run() -> ActionName {
        ActionName::run()
    }

    #[test]
    fn nothing_said_means_the_defaults_and_nobody() {
        let config = config("");
        assert_eq!(config.global, default_global());
        assert_eq!(*config.script, default_program());
        assert!(config.programs.is_empty());
    }

    #[test]
    fn a_program_has_the_global_values_but_for_its_own() {
        let p = program(
            "umask = 027\nenv-A = 1\nenv-B = 1\nlimit-nofile = 5\nallow-uid = alice\n\
             allow-gid = wheel\nlog-keep = 5\nargs = none\nuser = bob\ngroup = deploy\n\
             [prog-a]\nenv-B = 2\nlimit-core = 0\nallow-uid = none\ncmd-run = x\n",
        );
        assert_eq!(p.umask, 0o27);
        assert_eq!((p.env["A"].as_str(), p.env["B"].as_str()), ("1", "2"));
        assert_eq!(
            p.limits[&Resource::Nofile],
            Limit {
                soft: Some(5),
                hard: Some(5)
            }
        );
        assert_eq!(p.limits.len(), 2);
        assert_eq!((p.allow.uids.ids.len(), p.allow.uids.line), (0, 14));
        assert_eq!((p.allow.gids.ids[0].get(), p.allow.gids.line), (99, 6));
        assert_eq!(
            p.log_keep,
            Retention {
                count: Some(5),
                age: None,
                size: None
            }
        );
        assert_eq!(p.args, Args::None);
        assert_eq!((p.line, p.run_as.line), (11, 9));
    }

    #[test]
    fn arguments_are_for_commands_unless_the_file_says_otherwise() {
        assert_eq!(program("[prog-a]\ncmd-run = x").args, Args::Any);
        assert_eq!(program("[prog-a]").args, Args::None);
        assert_eq!(program("args = any\n[prog-a]").args, Args::Any);
        assert_eq!(
            program("args = any\n[prog-a]\ncmd-run = x\nargs = none").args,
            Args::None
        );
    }

    #[test]
    fn user_and_group_of_an_action_are_settled_whatever_the_order() {
        let p = program("[prog-a]\ngroup-run = 7\nuser = alice\n");
        let expected = RunAs {
            user: Some(RunUser::Named("alice".into())),
            group: Gid::new(7).ok(),
            line: 3,
        };
        assert_eq!(*p.run_as(&run()), expected);
        assert_eq!(p.run_as(&ActionName::cancel()).group, None);
        let p = program("default-sgid = 5\n[prog-a]\nsuid-run = 12\n");
        let twelve = RunUser::Number(Uid::new(12).unwrap());
        let expected = RunAs {
            user: Some(twelve),
            group: Gid::new(5).ok(),
            line: 3,
        };
        assert_eq!(*p.run_as(&run()), expected);
    }

    #[test]
    fn the_last_of_two_spellings_of_a_key_counts() {
        let p = program("[prog-a]\nuser = alice\ndefault-suid = bob\n");
        assert_eq!(p.run_as.user, Some(RunUser::Named("bob".into())));
        let p = program("[prog-a]\nsuid-run = alice\nuser-run = bob\n");
        assert_eq!(p.run_as(&run()).user, Some(RunUser::Named("bob".into())));
    }

    #[test]
    fn only_the_last_of_same_named_sections_counts_and_nothing_is_merged() {
        let text = "user = bob\n[prog-a]\numask = 0\ntypo = 1\n[prog-b]\n[prog-a]\nargs = any\n";
        assert_eq!(codes(text), [(2, "overridden")]);
        let p = program(text);
        assert_eq!((p.umask, p.args, p.line), (0o22, Args::Any, 6));
    }

    #[test]
    fn an_overridden_value_may_be_bad() {
        assert_eq!(codes("umask = x\numask = 0\n"), [(1, "overridden")]);
        assert_eq!(
            codes("umask = 0\numask = x\n"),
            [(1, "overridden"), (2, "bad-value")]
        );
    }

    #[test]
    fn inputs_keep_the_order_of_the_file() {
        let p = program("[prog-a]\ninput-z = flag\ninput-b = text\ninput-m = flag\n");
        let names: Vec<_> = p.inputs.iter().map(|i| i.name.as_str()).collect();
        assert_eq!(names, ["z", "b", "m"]);
    }

    #[test]
    fn a_timeout_of_none_undoes_the_global_one() {
        let p = program("timeout = 5\n[prog-a]\ntimeout-run = none\n");
        assert_eq!(p.timeout(&run()), None);
        assert_eq!(
            p.timeout(&ActionName::cancel()),
            Some(Duration::from_secs(5))
        );
    }

    #[test]
    fn running_as_root_is_warned_of_only_where_others_may_and_nobody_said_so() {
        assert_eq!(
            codes("[prog-a]\nallow-uid = alice\n"),
            [(1, "runs-as-root")]
        );
        assert_eq!(codes("[prog-a]\nallow-uid = 0\n"), []);
        assert_eq!(codes("[prog-a]\nallow-uid = alice\nuser = 0\n"), []);
        assert_eq!(
            codes("[prog-a]\nallow-uid = alice\nuser = mallory\n"),
            [(3, "unknown-account")]
        );
        assert_eq!(codes("[prog-a]\nallow-uid = alice\nuid-run = none\n"), []);
        let text = b"[prog-a]\nallow-uid = alice\n";
        assert_eq!(check(text, Path::new("x"), &Fake, false).diagnostics, []);
    }

    #[test]
    fn one_error_is_enough_for_no_configuration_and_warnings_are_not() {
        assert_eq!(checked("umask = x").config, None);
        assert_eq!(checked("novalue").config, None);
        assert!(checked("umask = 0\numask = 0").config.is_some());
        assert_eq!(checked("umask = x\numask = 0\ntypo = 1").counts(), (1, 1));
    }

    #[test]
    fn columns_count_characters_and_point_at_the_word_that_is_wrong() {
        let d = &checked("\u{feff}# é\n  allow-uid = alice, é\u{301}x ,bob").diagnostics[0];
        assert_eq!((d.line, d.col, d.width), (2, 22, 3));
    }

    /// Lines close to real ones.
    fn line() -> impl Strategy<Value = String> {
        let key = prop_oneof![
            "(allow|uid|gid|cmd|user|suid|env|limit|input|timeout|log|stop)-(uid|gid|run|cancel|nofile|A|x|keep|max-size|signal)",
            "(user|group|umask|path|shell|args|cwd|root|cgroup|coalesce|timeout)",
            "[a-z-]{0,12}",
        ];
        let value = prop_oneof![
            "(none|yes|no|any|alice|bob|wheel|-1|65534|/bin|5|30s|4GiB|text|flag|choice a b|int 1..5)",
            "[0-9a-z:., /-]{0,12}",
            r"\PC{0,8}",
        ];
        prop_oneof![
            6 => (key, value).prop_map(|(k, v)| format!("{k} = {v}")),
            2 => r"\[(prog-)?[a-z/.]{0,4}\]?",
            1 => r"(?s).{0,16}",
        ]
    }

    proptest! {
        #[test]
        fn no_text_panics_and_only_faultless_ones_are_used(
            lines in prop::collection::vec(line(), 0..16),
            bytes: Vec<u8>,
            root: bool,
        ) {
            let mut text = lines.join("\n").into_bytes();
            for _ in 0..2 {
                let checked = check(&text, Path::new("x"), &Fake, root);
                prop_assert_eq!(checked.counts().0 == 0, checked.config.is_some());
                let rendered = checked.render(false);
                prop_assert!(rendered.chars().all(|c| c == '\n' || !c.is_control()));
                for d in &checked.diagnostics {
                    prop_assert!(d.line > 0 && d.col > 0 && d.width > 0 && !d.message.is_empty());
                    let first = format!("x:{}:{}: {}: ", d.line, d.col, d.severity.as_str());
                    prop_assert!(rendered.lines().any(|l| l.starts_with(&first)), "{}", rendered);
                }
                text.extend(&bytes);
            }
        }
    }
}
