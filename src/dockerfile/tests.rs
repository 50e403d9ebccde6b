//! Golden tests against BuildKit's own test data, and properties of the whole parser.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use proptest::prelude::*;

use super::expand::Lexer;
use super::node::{self, Node};
use super::*;

/// The golden data, or a notice that it is not there.
fn data(part: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data/dockerfile").join(part);
    if path.exists() {
        return Some(path);
    }
    println!("skipped: no golden data at {}", path.display());
    None
}

fn folders(path: &Path) -> Vec<PathBuf> {
    let mut folders: Vec<_> = fs_err::read_dir(path).unwrap().map(|entry| entry.unwrap().path()).collect();
    folders.sort();
    folders
}

/// Go's `%q`.
fn quote(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\x07' => out.push_str("\\a"),
            '\x08' => out.push_str("\\b"),
            '\x0c' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\x0b' => out.push_str("\\v"),
            c if c.is_control() => write!(out, "\\x{:02x}", u32::from(c)).unwrap(),
            c => out.push(c),
        }
    }
    out + "\""
}

/// The form of the golden `result` files.
fn dump(node: &Node) -> String {
    let mut out = node.keyword.to_lowercase();
    if !node.flags.is_empty() {
        let flags: Vec<_> = node.flags.iter().map(|flag| quote(flag)).collect();
        write!(out, " [{}]", flags.join(" ")).unwrap();
    }
    if let Some(trigger) = &node.trigger {
        write!(out, " ({})", dump(trigger)).unwrap();
    }
    let pairs = matches!(node.name().as_str(), "ENV" | "LABEL");
    for (index, argument) in node.arguments.iter().enumerate() {
        write!(out, " {}", quote(argument)).unwrap();
        if pairs && index % 2 == 1 {
            out.push_str(if node.legacy { " \"\"" } else { " \"=\"" });
        }
    }
    out
}

#[test]
fn golden_parses() {
    let Some(path) = data("parser/testfiles") else { return };
    let folders = folders(&path);
    assert!(folders.len() > 25);
    for folder in folders {
        let text = fs_err::read_to_string(folder.join("Dockerfile")).unwrap();
        let expected = fs_err::read_to_string(folder.join("result")).unwrap();
        let nodes = node::parse(&SourceText::new("Dockerfile", &text), &text).unwrap();
        let mut result = String::new();
        for node in &nodes.nodes {
            writeln!(result, "({})", dump(node)).unwrap();
        }
        assert_eq!(result.trim(), expected.trim(), "{}", folder.display());
    }
}

#[test]
fn golden_errors() {
    let Some(path) = data("parser/testfiles-negative") else { return };
    for folder in folders(&path) {
        let text = fs_err::read(folder.join("Dockerfile")).unwrap();
        assert!(parse("Dockerfile", &text).is_err(), "{}", folder.display());
    }
}

#[test]
fn golden_line_numbers() {
    let Some(path) = data("parser/testfile-line/Dockerfile") else { return };
    let text = fs_err::read_to_string(path).unwrap();
    let nodes = node::parse(&SourceText::new("Dockerfile", &text), &text).unwrap().nodes;
    let lines: Vec<_> = nodes.iter().map(|node| (node.lines.start, node.lines.end)).collect();
    assert_eq!(lines, [(5, 5), (11, 12), (17, 31)]);
}

#[test]
fn golden_contexts_parse() {
    let Some(path) = data("contexts") else { return };
    let mut pending = vec![path];
    let mut count = 0;
    while let Some(path) = pending.pop() {
        if path.is_dir() {
            pending.extend(folders(&path));
        } else if path.file_name().unwrap().to_string_lossy().starts_with("Dockerfile") {
            count += 1;
            // One asks for Docker's frontend from a mirror.
            let syntax = Some("docker/dockerfile:1");
            if let Err(error) = parse_with_syntax("Dockerfile", &fs_err::read(&path).unwrap(), syntax) {
                panic!("{}: {error}", path.display());
            }
        }
    }
    assert!(count > 50, "{count}");
}

#[test]
fn golden_expansion() {
    let Some(path) = data("expand/envVarTest") else { return };
    let env = [("PWD", "/home"), ("SHELL", "bash"), ("KOREAN", "한국어"), ("NULL", "")];
    let mut count = 0;
    for line in fs_err::read_to_string(path).unwrap().lines() {
        let parts: Vec<_> = line.split('|').map(str::trim).collect();
        let [platform, source, expected] = parts[..] else { continue };
        if line.starts_with('#') || platform == "W" {
            continue;
        }
        count += 1;
        let result = Lexer::new('\\').word(source, &env);
        match result {
            Ok(word) => assert_eq!(word.text, expected, "{line}"),
            Err(error) => assert_eq!("error", expected, "{line}: {error}"),
        }
    }
    assert!(count > 200, "{count}");
}

#[test]
fn golden_words() {
    let Some(path) = data("expand/wordsTest") else { return };
    let text = fs_err::read_to_string(path).unwrap();
    let mut env: Vec<(String, String)> = Vec::new();
    let mut count = 0;
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        if let Some(pair) = line.strip_prefix("ENV ") {
            let (key, value) = pair.trim_start().split_once('=').unwrap();
            env.push((key.to_owned(), value.to_owned()));
        } else if let Some((source, expected)) = line.split_once('|') {
            count += 1;
            let result = Lexer::new('\\')
                .words(source.trim(), &env)
                .unwrap_or_else(|_| vec!["error".to_owned()])
                .join(",");
            assert_eq!(result, expected.trim_start(), "{line}");
        }
    }
    assert!(count > 20, "{count}");
}

fn instructions(text: &str) -> Vec<Instruction> {
    let file = parse("Dockerfile", format!("FROM base\n{text}").as_bytes())
        .unwrap_or_else(|error| panic!("{error}"));
    let stage = file.stages.into_iter().next().unwrap();
    stage.instructions.into_iter().map(|instruction| instruction.node).collect()
}

fn instruction(text: &str) -> Instruction {
    let [instruction] = <[_; 1]>::try_from(instructions(text)).unwrap();
    instruction
}

fn run(text: &str) -> Run {
    match instruction(text) {
        Instruction::Run(run) => run,
        other => panic!("{other:?}"),
    }
}

fn copy(text: &str) -> Copy {
    match instruction(text) {
        Instruction::Copy(copy) => copy,
        other => panic!("{other:?}"),
    }
}

/// The message of what is wrong with an instruction behind FROM.
fn error(text: &str) -> String {
    parse("Dockerfile", format!("FROM base\n{text}").as_bytes()).unwrap_err().message().to_owned()
}

fn rules(text: &str) -> Vec<&'static str> {
    let (lint, _) = parse_checked("Dockerfile", text.as_bytes(), Dialect::default());
    lint.take().iter().map(|warning| warning.rule.name).collect()
}

#[test]
fn a_file_has_stages() {
    let text = "# syntax=docker/dockerfile:1\n# escape=`\nARG A=1 B\narg C\n\nFROM --platform=$P img:$A AS Build\n\
                ARG A\nRUN x `\n  y\nFROM scratch\n";
    let file = parse("Dockerfile", text.as_bytes()).unwrap();
    assert_eq!(file.directives.escape, '`');
    assert_eq!(file.directives.syntax.as_deref(), Some("docker/dockerfile:1"));
    let meta: Vec<_> =
        file.meta_args.iter().map(|arg| (&*arg.node.name, arg.node.default.as_deref())).collect();
    assert_eq!(meta, [("A", Some("1")), ("B", None), ("C", None)]);
    let [build, last] = &file.stages[..] else { panic!() };
    assert_eq!(
        build.from,
        From { image: "img:$A".into(), platform: Some("$P".into()), name: Some("build".into()) }
    );
    assert_eq!((build.lines, &*build.original), (Lines::one(6), "FROM --platform=$P img:$A AS Build"));
    assert_eq!(build.instructions[1].original, "RUN x   y");
    assert_eq!(build.instructions[1].lines, Lines::new(8, 9));
    assert_eq!(last.from, From { image: "scratch".into(), platform: None, name: None });
    assert_eq!(file.source.line(10), Some("FROM scratch"));
}

#[test]
fn heredoc_as_the_whole_command() {
    let text = run("RUN <<EOF\necho $A\n  b\nEOF\n");
    assert_eq!(text.program(), Program::Shell("echo $A\n  b\n".into()));
    assert_eq!(text.heredoc_summary().as_deref(), Some("echo $A..."));
    let script = run("RUN <<-'go'\n\t#!/bin/cat\n\t\tx\n\tgo\n");
    assert_eq!(script.program(), Program::Script { name: "go".into(), body: "#!/bin/cat\nx\n".into() });
    assert!(!script.heredocs[0].expand && script.heredocs[0].chomp);
}

#[test]
fn heredocs_within_a_command_are_the_shell_s() {
    let both = run("RUN --network=none cat <<A 3<<-\"B\" && x\na\nA\n\tb\n\tB\n");
    assert_eq!(both.program(), Program::Shell("cat <<A 3<<-\"B\" && x\na\nA\n\tb\nB".into()));
    assert_eq!(both.heredocs[1].descriptor, 3);
    assert_eq!((both.network, both.heredoc_summary()), (Network::None, None));
    // In JSON there are none, nor where the shell's words are not ours.
    assert!(run("RUN [\"echo\", \"<<EOF\"]").heredocs.is_empty());
    assert!(run("RUN echo $((1<<2)) \"<<EOF\"").heredocs.is_empty());
    assert!(run("RUN cat <<<text").heredocs.is_empty());
}

/// From BuildKit's tests.
#[test]
fn heredocs_are_read_like_buildkit_s() {
    let text = "ENV NAME=me\nUSER <<INVALID\nUSER x\nRUN <<EMPTY\nEMPTY\n\nRUN 3<<EMPTY2\nEMPTY2\nRUN \"<<NOHEREDOC\"\n\
                RUN <<INDENT\n\tfoo\n\tbar\nINDENT\nRUN <<-UNINDENT2\n\tbaz\n\tquux\n\tUNINDENT2\n\
                RUN <<COMMENT\n# internal\necho # trailing\nCOMMENT\nRUN --mount=type=cache,target=/foo <<MOUNT\nx\nMOUNT\n\
                COPY <<X <<Y /dest\nY\nX\nX\nY\nRUN <<COMPLEX python3\nprint('x')\nCOMPLEX\nRUN <<eo'f'\necho\neof\n\
                RUN <<eo\\'f\necho\neo'f\nRUN <<'e'o\\'f\necho\neo'f\nRUN <<'one two'\necho\none two\n\
                RUN <<$EOF\n$EOF\nRUN <<  EOF\nEOF\nRUN <<  EOF  > foo\nEOF\n";
    let text = format!("FROM a\n{text}");
    let nodes = node::parse(&SourceText::new("Dockerfile", &text), &text).unwrap().nodes;
    let found: Vec<Vec<_>> = nodes
        .iter()
        .map(|node| {
            let describe = |doc: &Heredoc| {
                (doc.name.clone(), doc.descriptor, doc.expand, doc.chomp, doc.content.clone())
            };
            node.heredocs.iter().map(describe).collect()
        })
        .collect();
    let doc = |name: &str, expand, content: &str| (name.to_owned(), 0, expand, false, content.to_owned());
    assert_eq!(
        found,
        [
            vec![],
            vec![],
            vec![],
            vec![],
            vec![doc("EMPTY", true, "")],
            vec![("EMPTY2".to_owned(), 3, true, false, String::new())],
            vec![],
            vec![doc("INDENT", true, "\tfoo\n\tbar\n")],
            vec![("UNINDENT2".to_owned(), 0, true, true, "\tbaz\n\tquux\n".to_owned())],
            vec![doc("COMMENT", true, "# internal\necho # trailing\n")],
            vec![doc("MOUNT", true, "x\n")],
            vec![doc("X", true, "Y\n"), doc("Y", true, "X\n")],
            vec![doc("COMPLEX", true, "print('x')\n")],
            vec![doc("eof", false, "echo\n")],
            vec![doc("eo'f", true, "echo\n")],
            vec![doc("eo'f", false, "echo\n")],
            vec![doc("one two", false, "echo\n")],
            vec![doc("$EOF", true, "")],
            vec![doc("EOF", true, "")],
            vec![doc("EOF", true, "")],
        ]
    );
}

#[test]
fn heredoc_words() {
    let name = |word: &str| heredoc::parse_word(word).map(|found| found.map(|doc| doc.name));
    for word in
        ["<<EOF", "<<'EOF'", "<<\"EOF\"", "<<-EOF", "<<-'EOF'", "<<EO\"F\"", "<< EOF", "<<- EOF", "12<<EOF"]
    {
        assert_eq!(name(word), Ok(Some("EOF".to_owned())), "{word}");
    }
    for word in ["<<'EOF", "<<\"EOF", "<<EOF'", "<<EOF\""] {
        assert!(name(word).is_err(), "{word}");
    }
    for word in ["", "EOF", "<<", "<<-", "<EOF", "<<<EOF", "<<EOF sh"] {
        assert_eq!(name(word), Ok(None), "{word}");
    }
}

#[test]
fn the_line_of_a_heredoc_may_be_followed_by_others() {
    let [first, second] = <[_; 2]>::try_from(instructions("RUN <<EOF\nRUN no\nEOF\nRUN yes\n")).unwrap();
    let (Instruction::Run(first), Instruction::Run(second)) = (first, second) else { panic!() };
    assert_eq!(first.program(), Program::Shell("RUN no\n".into()));
    assert_eq!(second.program(), Program::Shell("yes".into()));
}

#[test]
fn heredocs_are_sources() {
    let files = copy("COPY --chmod=644 a <<EOF <<-\"x.txt\" /dir/\nhello $A\r\nEOF\n\tkeep $A\n\tx.txt\n");
    assert_eq!((&*files.sources, &*files.dest), (&["a".to_owned()][..], "/dir/"));
    let found: Vec<_> = files.heredocs.iter().map(|doc| (&*doc.name, doc.body(), doc.expand)).collect();
    assert_eq!(found, [("EOF", "hello $A\r\n".to_owned(), true), ("x.txt", "keep $A\n".to_owned(), false)]);
    assert_eq!(error("COPY a <<EOF\nEOF"), "COPY cannot accept a heredoc as a destination");
    assert_eq!(error("COPY <<../x /\n../x"), "the heredoc's delimiter \"../x\" cannot be the name of a file");
    assert_eq!(error("RUN <<EOF\nx"), "unterminated heredoc: no line is \"EOF\"");
}

#[test]
fn copy_and_add_have_options() {
    let all = copy("COPY --from=b --chown=a:b --chmod=u+x --link --parents --exclude=*.o --exclude=x a b c/");
    let expected = Copy {
        sources: vec!["a".into(), "b".into()],
        heredocs: Vec::new(),
        dest: "c/".into(),
        from: Some("b".into()),
        chown: Some("a:b".into()),
        chmod: Some("u+x".into()),
        link: true,
        parents: true,
        exclude: vec!["*.o".into(), "x".into()],
    };
    assert_eq!(all, expected);
    assert!(!copy("COPY --link=false a b").link);
    assert_eq!(copy("COPY [\"a b\", \"c d\"]").sources, ["a b"]);
    let Instruction::Add(add) = instruction(
        "ADD --unpack=false --keep-git-dir --checksum=sha256:00 --exclude=x https://a/b.git#main:sub git@c:d /e",
    ) else {
        panic!()
    };
    assert_eq!(
        (add.unpack, add.keep_git_dir, add.checksum.as_deref()),
        (Some(false), Some(true), Some("sha256:00"))
    );
    assert_eq!(add.sources, ["https://a/b.git#main:sub", "git@c:d"]);
    let Instruction::Add(plain) = instruction("ADD a /") else { panic!() };
    assert_eq!((plain.unpack, plain.keep_git_dir), (None, None));
}

#[test]
fn run_has_options() {
    let all = run(
        "RUN --mount=type=cache,target=/c --mount=from=x,target=/x --network=host --security=insecure --device=a/b=c,required x",
    );
    assert_eq!(all.mounts.len(), 2);
    assert_eq!(all.mounts[1].from.as_deref(), Some("x"));
    assert_eq!((all.network, all.security), (Network::Host, Security::Insecure));
    assert_eq!(all.devices, ["a/b=c,required"]);
    assert_eq!(all.program(), Program::Shell("x".into()));
    assert_eq!(run("RUN [\"a\", \"b\"]").program(), Program::Exec(vec!["a".into(), "b".into()]));
    assert_eq!(run("RUN ['a']").program(), Program::Shell("['a']".into()));
}

#[test]
fn the_other_instructions() {
    let pairs =
        |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    let strings = |strings: &[&str]| strings.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
    let shell = |text: &str| CommandLine::Shell(text.to_owned());
    for (text, expected) in [
        ("ENV a=b c=\"d e\"", Instruction::Env(pairs(&[("a", "b"), ("c", "\"d e\"")]))),
        ("ENV a b  c=d", Instruction::Env(pairs(&[("a", "b  c=d")]))),
        ("LABEL a.b=c", Instruction::Label(pairs(&[("a.b", "c")]))),
        ("WORKDIR  /a b ", Instruction::Workdir("/a b".into())),
        ("USER a:b", Instruction::User("a:b".into())),
        ("CMD a  b", Instruction::Cmd(shell("a  b"))),
        ("CMD", Instruction::Cmd(shell(""))),
        ("ENTRYPOINT []", Instruction::Entrypoint(CommandLine::Exec(Vec::new()))),
        ("ENTRYPOINT [\"a\"]", Instruction::Entrypoint(CommandLine::Exec(strings(&["a"])))),
        ("SHELL [\"a\", \"-c\"]", Instruction::Shell(strings(&["a", "-c"]))),
        ("EXPOSE 90 80/udp $P", Instruction::Expose(strings(&["$P", "80/udp", "90"]))),
        ("VOLUME /a /b", Instruction::Volume(strings(&["/a", "/b"]))),
        ("VOLUME [\"/a b\"]", Instruction::Volume(strings(&["/a b"]))),
        ("STOPSIGNAL SIGTERM", Instruction::StopSignal("SIGTERM".into())),
        ("MAINTAINER a b", Instruction::Maintainer("a b".into())),
        ("HEALTHCHECK none", Instruction::Healthcheck(Healthcheck::None)),
        ("onbuild  copy a b", Instruction::OnBuild("copy a b".into())),
        ("ONBUILD COPY <<E /x\nbody\nE", Instruction::OnBuild("COPY <<E /x\nbody\nE".into())),
    ] {
        assert_eq!(instruction(text), expected, "{text}");
    }
    let Instruction::Healthcheck(Healthcheck::Check { command, interval, timeout, retries, .. }) =
        instruction("HEALTHCHECK --interval=5m --timeout=0s --retries=3 CMD curl  x")
    else {
        panic!()
    };
    assert_eq!((command, interval.as_secs(), timeout.as_secs(), retries), (shell("curl  x"), 300, 0, 3));
}

#[test]
fn triggers_are_instructions() {
    let Instruction::OnBuild(trigger) = instruction("ONBUILD COPY --from=a <<E /x\nbody\nE") else {
        panic!()
    };
    let Instruction::Copy(copy) = parse_trigger(&trigger).unwrap().node else { panic!() };
    assert_eq!((copy.from.as_deref(), &*copy.heredocs[0].content), (Some("a"), "body\n"));
    for (text, message) in [
        ("ONBUILD RUN x", "Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed"),
        ("FROM a", "FROM isn't allowed as an ONBUILD trigger"),
        ("RUN a\nRUN b", "a trigger is one instruction, not 2"),
        ("COYP a b", "unknown instruction `COYP`"),
        ("", "file with no instructions"),
    ] {
        assert_eq!(parse_trigger(text).unwrap_err().message(), message);
    }
}

#[test]
fn what_is_wrong_is_said() {
    for (text, message) in [
        (
            "COPY a",
            "COPY requires at least two arguments, but only one was provided. Destination could not be determined",
        ),
        ("COPY --form=a b c", "unknown flag: --form"),
        ("COPY --link= a b", "missing a value on flag: --link"),
        ("COPY --link=maybe a b", "expecting boolean value for flag --link, not: maybe"),
        ("COPY --from a b", "missing a value on flag: --from"),
        ("COPY --chown=a --chown=b c d", "duplicate flag specified: --chown"),
        ("WORKDIR", "WORKDIR requires exactly one argument"),
        ("WORKDIR --x /a", "unknown flag: --x"),
        ("ENV", "ENV requires at least one argument"),
        ("ENV =a", "ENV names can not be blank"),
        ("ENV a=b c", "can't find = in \"c\". Must be of the form: name=value"),
        ("LABEL a", "LABEL must have two arguments"),
        ("ARG", "ARG requires at least one argument"),
        ("ARG =x", "ARG names can not be blank"),
        ("FROM a b", "FROM requires either one or three arguments"),
        (
            "FROM a AS 1",
            "invalid name for build stage: \"1\", name can't start with a number or contain symbols",
        ),
        (
            "FROM a AS b/c",
            "invalid name for build stage: \"b/c\", name can't start with a number or contain symbols",
        ),
        ("RUN --network=bridge x", "invalid network mode \"bridge\""),
        ("RUN --network= x", "invalid network mode \"\""),
        ("RUN --security=x y", "security \"x\" is not valid"),
        (
            "RUN --mount=from=$A,target=/a x",
            "'from' doesn't support variable expansion, define alias stage instead",
        ),
        ("SHELL /bin/sh -c", "SHELL requires the arguments to be in JSON form"),
        ("SHELL []", "SHELL requires at least one argument"),
        ("VOLUME [\"\"]", "VOLUME specified can not be an empty string"),
        ("CMD [\"a\", 1]", "when using JSON array syntax, arrays must be comprised of strings only"),
        ("HEALTHCHECK", "HEALTHCHECK requires at least one argument"),
        ("HEALTHCHECK NONE x", "HEALTHCHECK NONE takes no arguments"),
        ("HEALTHCHECK CMD", "Missing command after HEALTHCHECK CMD"),
        ("HEALTHCHECK EXEC a", "Unknown type \"EXEC\" in HEALTHCHECK (try CMD)"),
        ("HEALTHCHECK --interval=1us CMD a", "Interval \"interval\" cannot be less than 1ms"),
        ("HEALTHCHECK --retries=-1 CMD a", "--retries must be a number that is not negative, not \"-1\""),
        ("ONBUILD", "ONBUILD requires at least one argument"),
        ("ONBUILD FROM a", "FROM isn't allowed as an ONBUILD trigger"),
        ("ONBUILD ONBUILD RUN a", "Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed"),
        ("INSTALL x", "unknown instruction `INSTALL`"),
    ] {
        assert_eq!(error(text), message, "{text}");
    }
    let parse = |text: &[u8]| parse("Dockerfile", text).unwrap_err();
    assert_eq!(parse(b"RUN a\nFROM b").message(), "no build stage in current context");
    assert_eq!(parse(b"ARG a").message(), "dockerfile contains no stages to build");
    assert_eq!(parse(b"# escape=x\nFROM a").message(), "invalid escape token 'x' does not match ` or \\");
    assert_eq!(
        parse(b"#escape=`\n#escape=`\nFROM a").message(),
        "only one escape parser directive can be used"
    );
    assert_eq!(
        parse(b"FROM a\nRUN \xff").to_string(),
        "Dockerfile:2: the line is not UTF-8\n    2 | RUN \u{fffd}\n      |     ^"
    );
    assert!(super::parse("Dockerfile", b"# caf\xe9\nFROM a").is_ok());
    let long = format!("FROM a\nLABEL a={}", "x".repeat(65_535));
    assert_eq!(parse(long.as_bytes()).message(), "dockerfile line greater than max allowed size of 65535");
    let frontend = parse(b"# syntax=other/frontend:1\nFROM a");
    assert_eq!(frontend.message(), "the frontend image other/frontend:1 is not supported");
    assert!(
        parse_with_syntax("Dockerfile", b"# syntax=other/frontend:1\nFROM a", Some("docker/dockerfile"))
            .is_ok()
    );
    assert!(parse_with_syntax("Dockerfile", b"FROM a", Some("other/frontend")).is_err());
}

#[test]
fn errors_point_and_advise() {
    use crate::hint::Hint;
    let error = parse("Dockerfile", b"FROM a\n\nCOYP a b\n").unwrap_err();
    assert_eq!(error.to_string(), "Dockerfile:3: unknown instruction `COYP`\n    3 | COYP a b\n      | ^^^^");
    assert_eq!(error.hint().as_deref(), Some("did you mean COPY?"));
    let error = parse("Dockerfile", b"FROM a\nCOPY \\\n  --form=x a b\n").unwrap_err();
    assert_eq!(
        error.to_string(),
        "Dockerfile:3: unknown flag: --form\n    3 |   --form=x a b\n      |   ^^^^^^"
    );
    assert_eq!(error.hint().as_deref(), Some("did you mean --from?"));
}

#[test]
fn questionable_things_are_warned_about() {
    assert_eq!(rules("FROM a\nRUN a \\\n\n  b"), ["NoEmptyContinuation"]);
    assert_eq!(rules("FROM a\nRUN a \\\n# comment\n  b"), [] as [&str; 0]);
    assert_eq!(
        rules("FROM a as B\nFROM c AS b\nFROM d AS scratch"),
        ["StageNameCasing", "FromAsCasing", "DuplicateStageName", "ReservedStageName"]
    );
    assert_eq!(rules("FROM a\nMAINTAINER e\nCOPY x"), ["MaintainerDeprecated"], "in spite of the error");
    assert_eq!(rules("FROM a\n# check=skip=MaintainerDeprecated\nMAINTAINER e"), [] as [&str; 0]);
    assert_eq!(rules("# check=skip=FromAsCasing,StageNameCasing\nFROM a as B"), [] as [&str; 0]);
    assert_eq!(rules("FROM a\nrun b\nRun c"), ["ConsistentInstructionCasing"; 2]);
    assert_eq!(rules("from a\nrun b\nRUN c"), ["ConsistentInstructionCasing"]);
    let experimental = "# check=experimental=InvalidDefinitionDescription\n#\n# other words\nARG a\nFROM b";
    assert_eq!(rules(experimental), ["InvalidDefinitionDescription"]);
    assert_eq!(rules(&experimental.replace("other words", "a words")), [] as [&str; 0]);
}

#[test]
fn a_check_from_outside_replaces_the_directive() {
    let text = b"# check=skip=all\nFROM a as b";
    let check = |check| parse_checked("Dockerfile", text, Dialect { check, syntax: None });
    assert_eq!(check(None).0.take(), []);
    let (lint, parsed) = check(Some("error=true"));
    parsed.unwrap();
    assert_eq!(lint.violation().as_deref(), Some("lint violation found for rules: FromAsCasing"));
    assert!(check(Some("error=perhaps")).1.unwrap_err().message().contains("BUILDKIT_DOCKERFILE_CHECK"));
}

#[test]
fn comments_describe_what_they_are_above() {
    let file = parse("Dockerfile", b"# a first\n# b second thing\nARG a b=1\n#\n# none\nFROM x\n").unwrap();
    let lines = file.meta_args[0].lines;
    assert_eq!((file.description(lines, "a"), file.description(lines, "b")), ("first", "second thing"));
    assert_eq!((file.description(lines, "sec"), file.description(lines, "")), ("", ""));
    let old = parse("Dockerfile", b"FROM a\nENV a b=c\nENV a=b\nLABEL d e").unwrap();
    let legacy: Vec<bool> = old.stages[0].instructions.iter().map(|found| found.is_legacy('\\')).collect();
    assert_eq!(legacy, [true, false, true]);
}

#[test]
fn odd_lines() {
    // A byte order mark, CR LF, an indented first line, blanks behind the escape character, the end of the file.
    let text = "\u{feff}# escape=\\\r\n  FROM a\r\nRUN x \\  \r\n  y \\\r\n";
    let file = parse("Dockerfile", text.as_bytes()).unwrap();
    assert_eq!(file.stages[0].instructions[0].original, "RUN x   y");
    // An escaped escape character continues nothing; one on a line of its own does.
    let [first, second] = <[_; 2]>::try_from(instructions("RUN x \\\\\nRUN \\\n\\\ny")).unwrap();
    let (Instruction::Run(first), Instruction::Run(second)) = (first, second) else { panic!() };
    assert_eq!(
        (first.program(), second.program()),
        (Program::Shell("x \\\\".into()), Program::Shell("y".into()))
    );
    // A comment ends the directives.
    assert_eq!(parse("Dockerfile", b"# hello\n# escape=`\nFROM a").unwrap().directives.escape, '\\');
    // Deep nesting is no problem.
    assert!(parse("Dockerfile", format!("FROM a\n{}RUN x", "ONBUILD ".repeat(8000)).as_bytes()).is_err());
    assert!(parse("Dockerfile", format!("FROM a\nRUN {}", "[".repeat(60_000)).as_bytes()).is_ok());
}

proptest! {
    #[test]
    fn any_text_ends(text in "(FROM|RUN|COPY|ADD|ENV|ARG|ONBUILD|HEALTHCHECK|CMD|#| |\n|\\\\|<<|EOF|-|=|\"|'|\\[|\\]|,|a|/|--mount=|--from|\\$|\\{|\\}){0,60}") {
        let _ = parse("Dockerfile", format!("FROM a\n{text}").as_bytes());
        let _ = parse("Dockerfile", text.as_bytes());
        let _ = parse_trigger(&text);
    }

    #[test]
    fn any_bytes_end(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        if let Err(error) = parse("Dockerfile", &bytes) {
            error.to_string();
        }
    }

    /// The lines of instructions do not overlap and cover what is written.
    #[test]
    fn lines_ascend(bodies in proptest::collection::vec("(RUN a|RUN a \\\\\n b|RUN <<E\nx\nE|# c|)", 0..12)) {
        let text = format!("FROM a\n{}\n", bodies.join("\n"));
        let file = parse("Dockerfile", text.as_bytes()).unwrap();
        let mut last = 1;
        for instruction in &file.stages[0].instructions {
            prop_assert!(instruction.lines.start > last);
            prop_assert!(file.source.line(instruction.lines.start).unwrap().starts_with("RUN"));
            last = instruction.lines.end;
        }
        prop_assert_eq!(file.stages[0].instructions.len(), bodies.iter().filter(|body| body.starts_with("RUN")).count());
    }
}
