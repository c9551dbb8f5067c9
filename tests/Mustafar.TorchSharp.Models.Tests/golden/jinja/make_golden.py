#!/usr/bin/env python3
"""Renders templates with Python's jinja2, set up as transformers sets it up, and writes what they give to golden.json.

    python3 make_golden.py        needs jinja2 3.1 (Debian: python3-jinja2); the expected texts were made with 3.1.6

families/*.jinja have the features of the chat templates of published model families, each rendered for all chats below;
snippets.txt has a template per line, for single features. Errors are recorded as null, and raise_exception's as its message.
"""
import datetime
import json
import pathlib

import jinja2
import jinja2.ext
import jinja2.sandbox

HERE = pathlib.Path(__file__).parent
NOW = datetime.datetime(2026, 2, 3, 14, 5, 9)


class Generation(jinja2.ext.Extension):
    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller):
        return caller()


class Raised(Exception):
    pass


def raise_exception(message):
    raise Raised(message)


def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols])
environment.filters["tojson"] = tojson
environment.globals["raise_exception"] = raise_exception
environment.globals["strftime_now"] = NOW.strftime


def render(source, variables):
    try:
        return {"text": environment.from_string(source).render(**variables)}
    except Raised as error:
        return {"raised": str(error)}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}


def turn(role, content, **more):
    return {"role": role, "content": content} | more


HI, YES, BYE = turn("user", "Hi"), turn("assistant", "Yes"), turn("user", "Bye")
SYSTEM = turn("system", "Be brief.")
CHATS = {
    "user": [HI],
    "spaces": [turn("user", "  Hi\n\n"), turn("assistant", "\n Yes  "), turn("user", "\tBye\r\n")],
    "system": [SYSTEM, HI],
    "history": [HI, YES, BYE],
    "system-history": [SYSTEM, HI, YES, BYE],
    "late-system": [HI, YES, SYSTEM, BYE],
    "developer": [turn("developer", "Be kind."), HI],
    "unknown-role": [HI, turn("critic", "No"), BYE],
    "two-users": [HI, BYE],
    "assistant-last": [HI, YES],
    "thinking": [HI, turn("assistant", "<think>\nhm\n</think>\n\nYes"), BYE],
    "reasoning": [HI, turn("assistant", "Yes", reasoning_content="hm\n"), BYE],
    "unicode": [turn("user", "naïve 👍🏽 数 \u200b'\"\\"), turn("assistant", "ﬁn—√"), turn("user", "<b>&amp;</b> {{ 1 }}")],
    "empty": [turn("system", ""), turn("user", ""), turn("assistant", ""), turn("user", " ")],
}
OPTIONS = {
    "plain": {},
    "no-prompt": {"add_generation_prompt": False},
    "no-thinking": {"enable_thinking": False},
}
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
TOOLS = [{"type": "function", "function": {"name": "add", "description": "Adds \"numbers\".", "parameters": {
    "type": "object", "properties": {"a": {"type": "number"}, "b": {"type": ["number", "null"], "enum": [1, 2.5, None, True]}}, "required": ["a"]}}}]

cases = []


def add(name, source, variables):
    cases.append({"name": name, "template": source, "variables": variables} | render(source, variables))


families = {}
for path in sorted((HERE / "families").glob("*.jinja")):
    families[path.stem] = path.read_bytes().decode()
    for chat, messages in CHATS.items():
        for option, values in OPTIONS.items():
            if option != "plain" and chat not in ("system-history", "thinking"):
                continue
            variables = {"messages": messages, "tools": None, "documents": None, "add_generation_prompt": True} | SPECIAL | values
            cases.append({"name": f"{path.stem}, {chat}, {option}", "family": path.stem, "variables": variables}
                         | render(families[path.stem], variables))
    variables = {"messages": CHATS["system-history"], "tools": TOOLS, "documents": None, "add_generation_prompt": True} | SPECIAL
    cases.append({"name": f"{path.stem}, tools", "family": path.stem, "variables": variables} | render(families[path.stem], variables))

VALUES = {
    "s": " Hello, World ", "w": "a-b_c  d", "e": "", "u": "naïve 👍🏽 数ß", "n": 7, "f": 2.5, "z": 0, "t": True, "x": None,
    "l": [3, 1, 2], "m": [{"k": "b", "v": 1}, {"k": "A", "v": 2, "d": {"q": [1]}}, {"k": "c"}], "d": {"one": 1, "Two": [2, "2"], "items": 3},
    "nest": [[1, [2, ["x", None]]], {"a": {"b": True}}],
}
for number, line in enumerate((HERE / "snippets.txt").read_text().splitlines(), 1):
    if line and not line.startswith("//"):
        add(f"snippet {number}: {line}", line.replace("⏎", "\n").replace("␍", "\r"), VALUES)

(HERE / "golden.json").write_text(json.dumps(cases, ensure_ascii=True, separators=(",", ":")).replace('},{"name"', '},\n{"name"') + "\n")
print(len(cases), "cases,", sum("error" in case for case in cases), "errors,", sum("raised" in case for case in cases), "raised")
