"""Completions of the programs' options for bash, zsh and fish, made from their parsers."""

from collections.abc import Iterable, Iterator

from vhostd.ctl.installation.commandline import FILES, FOLDERS, GROUPS, PROGRAMS, Command, Option

BASH_FILES = {**dict.fromkeys(FILES, "-f"), **dict.fromkeys(FOLDERS, "-d"), **dict.fromkeys(PROGRAMS, "-cf")}
ZSH_VALUES = {**dict.fromkeys(FILES, "_files"), **dict.fromkeys(FOLDERS, "_files -/")}
ZSH_VALUES |= dict.fromkeys(GROUPS, "_groups")
ZSH_VALUES |= dict.fromkeys(PROGRAMS, "_normal")
FISH_VALUES = {
    **dict.fromkeys(FILES, "-r -F"),
    **dict.fromkeys(FOLDERS, "-x -a '(__fish_complete_directories)'"),
}
FISH_VALUES |= dict.fromkeys(GROUPS, "-x -a '(__fish_complete_groups)'")


# --- bash -----------------------------------------------------------------------------------------------

BASH = """\
# Completion of {name} for bash.
{function}() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} previous=${{COMP_WORDS[COMP_CWORD - 1]}}
    local command= words= files= each
    # --option=value comes in three words.
    if [[ $word == = ]]; then
        word=
    elif [[ $previous == = ]]; then
        previous=${{COMP_WORDS[COMP_CWORD - 2]}}
    fi
{find}    case "$command $previous" in
{values}
        *)
            case $command in
{words}
            esac
            ;;
    esac
    if [[ $files ]]; then
        compopt -o filenames 2>/dev/null
        mapfile -t COMPREPLY < <(compgen "$files" -- "$word")
    else
        mapfile -t COMPREPLY < <(compgen -W "$words" -- "$word")
    fi
}}
complete -F {function} {name}
"""
BASH_FIND = """\
    for each in "${{COMP_WORDS[@]:1:COMP_CWORD - 1}}"; do
        case $each in {names}) command=$each && break ;; esac
    done
"""


def bash(command: Command) -> str:
    """The completion of a program for bash; it does not need the package bash-completion."""
    every = list(_each(command))
    names = " | ".join(inner.name for inner in command.commands)
    return BASH.format(
        name=command.name,
        function=_function(command),
        find=BASH_FIND.format(names=names) if names else "",
        values="\n".join(_bash_value(name, option) for name, inner in every for option in _valued(inner)),
        words="\n".join(_bash_words(name, inner) for name, inner in every),
    )


def _bash_value(command: str, option: Option) -> str:
    """The completion of an option's value: files, some words, or nothing if any text is allowed."""
    case = " | ".join(f'"{command} {flag}"' for flag in option.flags)
    if option.choices:
        return f'        {case}) words="{" ".join(option.choices)}" ;;'
    if option.kind in GROUPS:
        return f"        {case}) words=$(compgen -g) ;;"
    return f"        {case}) files={BASH_FILES.get(option.kind, '')} ;;"


def _bash_words(name: str, command: Command) -> str:
    """The words that a command takes anywhere: its options, and files if it has such arguments."""
    words = [flag for option in command.options for flag in option.flags]
    words += [inner.name for inner in command.commands]
    files = {
        BASH_FILES[option.kind]
        for option in command.options
        if not option.flags and option.kind in FILES | PROGRAMS
    }
    operands = "".join(f" && [[ $word != -* ]] && files={action}" for action in files)
    return f'                "{name}") words="{" ".join(words)}"{operands} ;;'


# --- zsh ------------------------------------------------------------------------------------------------

ZSH = """\
#compdef {name}
# Completion of {name} for zsh.
{function}() {{
    local context state state_descr line
    typeset -A opt_args
    _arguments{style} \\
{arguments}
{commands}}}
{function} "$@"
"""
ZSH_COMMANDS = """\
    [[ $state == command ]] || return
    case $words[1] in
{cases}
    esac
"""
ZSH_COMMAND = """\
        {name})
            _arguments -s \\
{arguments}
            ;;"""


def zsh(command: Command) -> str:
    """The completion of a program for zsh, which loads it at first use."""
    arguments = list(_zsh_arguments(command))
    commands = ""
    if command.commands:
        # zsh evaluates these words once more.
        named = " ".join(
            _quote(f"{inner.name}\\:{_zsh_text(inner.description)}") for inner in command.commands
        )
        arguments += [_quote(f"1:command:(({named}))"), "'*::argument:->command'"]
        cases = [
            ZSH_COMMAND.format(name=inner.name, arguments=_continued(_zsh_arguments(inner), 16))
            for inner in command.commands
        ]
        commands = ZSH_COMMANDS.format(cases="\n".join(cases))
    return ZSH.format(
        name=command.name,
        function=_function(command),
        style=" -C" if commands else " -s",
        arguments=_continued(arguments, 8),
        commands=commands,
    )


def _zsh_arguments(command: Command) -> Iterator[str]:
    for option in command.options:
        value = ""
        if option.value:
            action = f"({' '.join(option.choices)})" if option.choices else ZSH_VALUES.get(option.kind, "")
            value = f":{option.kind}:{action}"
        for flag in option.flags:
            equals = "=" if value and flag.startswith("--") else ""
            yield _quote(f"{flag}{equals}[{_zsh_text(option.help)}]{value}")
        if not option.flags:
            rest = ":" if option.kind in PROGRAMS else ""  # the rest is a command line of its own
            yield _quote(f"*{rest}{value}")


def _zsh_text(text: str) -> str:
    for special in "\\[]:":
        text = text.replace(special, f"\\{special}")
    return text


def _quote(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def _continued(lines: Iterable[str], indent: int) -> str:
    return " \\\n".join(" " * indent + line for line in lines)


# --- fish -----------------------------------------------------------------------------------------------


def fish(command: Command) -> str:
    """The completion of a program for fish."""
    lines = [f"# Completion of {command.name} for fish.", f"complete -c {command.name} -f"]
    for name, inner in _each(command):
        condition = f"__fish_seen_subcommand_from {name}" if name else ""
        if command.commands and not name:
            condition = "__fish_use_subcommand"
        start = f"complete -c {command.name}" + (f" -n {_fish_quote(condition)}" if condition else "")
        lines += [f"{start} {rest}" for rest in _fish_options(inner)]
    return "\n".join([*lines, ""])


def _fish_options(command: Command) -> Iterator[str]:
    for option in command.options:
        flags = " ".join(
            f"-l {flag[2:]}" if flag.startswith("--") else f"-s {flag[1:]}" for flag in option.flags
        )
        value = ""
        if option.choices:
            value = f" -x -a {_fish_quote(' '.join(option.choices))}"
        elif option.value:
            value = f" {FISH_VALUES.get(option.kind, '-x')}"
        if flags:
            yield f"{flags}{value} -d {_fish_quote(option.help)}"
        elif option.kind in FILES:
            yield "-F"
        elif option.kind in PROGRAMS:
            yield "-F -a '(__fish_complete_command)'"
    for inner in command.commands:
        yield f"-a {inner.name} -d {_fish_quote(inner.description)}"


def _fish_quote(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _each(command: Command) -> Iterator[tuple[str, Command]]:
    """The program with an empty name, and each command with its name."""
    yield "", command
    for inner in command.commands:
        yield inner.name, inner


def _valued(command: Command) -> Iterator[Option]:
    """The options that take a value."""
    return (option for option in command.options if option.flags and option.value)


def _function(command: Command) -> str:
    return f"_{command.name.replace('-', '_')}"
