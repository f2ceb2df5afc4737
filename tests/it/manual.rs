//! Shell completions, manual pages, and colours of the output.

use crate::support;

use std::fs;
use std::process::{Command, Stdio};

use support::verb::{self, Output};
use support::{Image, Larder, Registry, Setup};

fn larder(setup: &Setup, arguments: &[&str]) -> Output {
    verb::run(setup, setup.bare_command().args(arguments))
}

/// Returns true if a program is installed.
fn is_installed(program: &str) -> bool {
    let tried = Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    tried.is_ok()
}

#[test]
fn completions_exist_for_every_shell() {
    let setup = Setup::empty();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = larder(&setup, &["completions", shell]).exited_with(0).stdout;
        for word in ["larder", "doctor", "per-registry", "containerd"] {
            assert!(script.contains(word), "{shell} lacks {word}");
        }
        let program = if shell == "powershell" { "pwsh" } else { shell };
        if ["bash", "zsh"].contains(&shell) && is_installed(program) {
            let file = setup.write(&format!("completions.{shell}"), &script);
            let read = Command::new(program).arg("-n").arg(&file).output().unwrap();
            assert!(read.status.success() && read.stderr.is_empty(), "{shell}: {read:?}");
        }
    }
    larder(&setup, &["completions", "tcsh"]).exited_with(2);
}

#[test]
fn bash_completion_has_verbs_and_clients() {
    if !is_installed("bash") {
        return;
    }
    let setup = Setup::empty();
    let script = larder(&setup, &["completions", "bash"]).exited_with(0).stdout;
    let file = setup.write("larder.bash", &script);
    let complete = |words: &str, at: usize| {
        let line = format!(
            "source '{}'; COMP_WORDS=({words}); COMP_CWORD={at}; \
             _larder larder \"${{COMP_WORDS[{at}]}}\" \"${{COMP_WORDS[$(({at} - 1))]}}\"; echo \"${{COMPREPLY[@]}}\"",
            file.display()
        );
        let ran = Command::new("bash").args(["--noprofile", "--norc", "-c", &line]).output().unwrap();
        String::from_utf8(ran.stdout).unwrap()
    };
    assert_eq!(complete("larder doc", 1).trim(), "doctor");
    assert_eq!(complete("larder setup contain", 2).trim(), "containerd");
}

#[test]
fn manual_page_exists_for_every_verb() {
    let setup = Setup::empty();
    let folder = setup.folder().join("man1");
    let output = larder(&setup, &["man", "--dir", folder.to_str().unwrap()]).exited_with(0).stdout;
    let mut names: Vec<_> =
        fs::read_dir(&folder).unwrap().map(|it| it.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert!(output.starts_with(&format!("wrote {} pages to ", names.len())), "{output}");
    for name in ["larder.1", "larder-serve.1", "larder-setup.1", "larder-store-convert.1"] {
        assert!(names.iter().any(|it| it == name), "{names:?}");
    }
    assert!(!names.iter().any(|it| it.contains("help")), "{names:?}");
    let first = fs::read_to_string(folder.join("larder.1")).unwrap();
    assert_eq!(larder(&setup, &["man"]).exited_with(0).stdout, first);
    for section in ["NAME", "SYNOPSIS", "OPTIONS", "\"EXIT STATUS\"", "ENVIRONMENT", "FILES"] {
        assert!(first.contains(&format!("\n.SH {section}\n")), "no {section}: {first}");
    }
    let serve = fs::read_to_string(folder.join("larder-serve.1")).unwrap();
    assert!(serve.contains(".SH \"EXIT STATUS\"") && !serve.contains(".SH FILES"), "{serve}");
    if is_installed("groff") {
        for name in names {
            let page = folder.join(&name);
            let read = Command::new("groff")
                .args(["-man", "-Kutf8", "-Tutf8", "-ww", "-z"])
                .arg(page)
                .output()
                .unwrap();
            assert!(read.status.success() && read.stderr.is_empty(), "{name}: {read:?}");
        }
    }
    let file = setup.write("file", "");
    let refused = larder(&setup, &["man", "--dir", file.to_str().unwrap()]).exited_with(1);
    assert!(refused.stderr.contains("file"), "{refused:?}");
}

#[test]
fn colours_need_a_terminal_or_a_request() {
    let registry = Registry::start();
    registry.add_image("library/app", "1", &Image::small(1));
    let larder = Larder::in_front_of(&registry);
    verb::online(&larder, &["warm", "app:1"]).exited_with(0);
    let server = format!("http://{}", larder.admin_addr());
    let config = larder.setup().config_file().display().to_string();
    let reach = ["--server", server.as_str()];
    let image = ["app:1", "--server", server.as_str()];
    let all: [(&[&str], &[&str]); 9] = [
        (&["ls"], &reach),
        (&["tags", "app"], &reach),
        (&["inspect"], &image),
        (&["check", "--offline"], &image),
        (&["warm"], &image),
        (&["verify"], &reach),
        (&["gc"], &reach),
        (&["doctor", "--config", &config], &reach),
        (&["--help"], &[]),
    ];
    for (verb, rest) in all {
        let arguments = [verb, rest].concat();
        let escapes = |variables: &[(&str, &str)]| {
            let mut command = larder.setup().bare_command();
            for name in ["NO_COLOR", "CLICOLOR", "CLICOLOR_FORCE"] {
                command.env_remove(name);
            }
            command.env("TERM", "xterm").envs(variables.iter().copied()).args(&arguments);
            let ran = verb::run(larder.setup(), &mut command).exited_with(0);
            ran.stdout.contains('\u{1b}') || ran.stderr.contains('\u{1b}')
        };
        assert!(!escapes(&[]), "{arguments:?} is no terminal's");
        assert!(!escapes(&[("NO_COLOR", "1"), ("CLICOLOR_FORCE", "1")]), "{arguments:?}");
        // These verbs print no colours.
        if !["gc", "verify", "warm"].contains(&verb[0]) {
            assert!(escapes(&[("CLICOLOR_FORCE", "1")]), "{arguments:?} is forced");
        }
    }
}

#[test]
fn log_colours_follow_the_environment() {
    let setup = Setup::empty().set("log.format", "text").set("store.path", "/dev/null/nowhere");
    let setup = setup
        .upstream_set("reg.test", "endpoints", vec!["http://127.0.0.1:1"])
        .upstream_set("reg.test", "default", true)
        .upstream_set("reg.test", "insecure_skip_verify", true);
    let log = |variables: &[(&str, &str)]| {
        let mut command = setup.command();
        for name in ["NO_COLOR", "CLICOLOR", "CLICOLOR_FORCE"] {
            command.env_remove(name);
        }
        let exit = support::larder::run_to_exit(command.env("TERM", "xterm").envs(variables.iter().copied()));
        assert!(exit.stderr.contains("certificates are not verified"), "{exit:?}");
        exit.stderr.contains('\u{1b}')
    };
    assert!(!log(&[]));
    assert!(log(&[("CLICOLOR_FORCE", "1")]));
    assert!(!log(&[("CLICOLOR_FORCE", "1"), ("NO_COLOR", "1")]));
}
