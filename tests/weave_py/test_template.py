"""Templates: what people write, what is refused and how, and what a template may cost."""

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.weave_py import captures
from weave_py import report
from weave_py.template import TemplateError
from weave_py.template_fill import ExecutionError, render


def document() -> dict[str, Any]:
    """Three nodes; their order is made stable."""
    made = captures.report("3-nodes-ready")
    made["Router"]["Peers"].sort(key=lambda peer: peer["Name"])
    return made


TEMPLATES = [
    ("{{.Version}}", "2.8.2"),
    ("{{.Version}} {{.Router.NickName}}", "2.8.2 host1"),
    ("{{len .Router.Peers}}", "3"),
    ("{{range .Router.Peers}}{{.NickName}},{{end}}", "host1,host2,host3,"),
    ('{{range .Router.Connections}}{{if eq .State "established"}}+{{else}}-{{end}}{{end}}', "++"),
    ("{{range $i, $p := .Router.Peers}}{{$i}}={{$p.NickName}} {{end}}", "0=host1 1=host2 2=host3 "),
    ("{{range $p := .Router.Peers}}{{$p.NickName}}{{end}}", "host1host2host3"),
    ("{{range .Router.Targets}}x{{else}}none{{end}}", "none"),
    ("{{range $k, $v := (index .Router.Connections 0).Attrs}}{{$k}}:{{$v}};{{end}}", "mtu:1438;name:sleeve;"),
    ("{{with .Router}}{{.Name}}{{end}}", "00:00:00:00:00:01"),
    ("{{with .Proxy}}there{{else}}gone{{end}}", "gone"),
    ("{{with $r := .Router}}{{$r.Port}}{{end}}", "6783"),
    ("{{if .Plugin}}plugin{{else}}none{{end}}", "none"),
    ("{{$n := .Router.NickName}}{{$n}}", "host1"),
    ("{{$n := 1}}{{range .Router.Peers}}{{$n = .NickName}}{{end}}{{$n}}", "host3"),
    ("{{$n := 1}}{{range .Router.Peers}}{{$n := .NickName}}{{end}}{{$n}}", "1"),
    ("{{$.Version}}{{range .Router.Peers}}{{$.Ready}}{{end}}", "2.8.2truetruetrue"),
    ("{{json .Router.Targets}}", "null"),
    ("{{json .DNS.Upstream}}", '["192.168.77.53"]'),
    ('{{.Router.NickName | printf "%s!"}}', "host1!"),
    ('{{printf "%-7s|%5d|%05d|" .Router.NickName 42 42}}', "host1  |   42|00042|"),
    ('{{printf "%v %q %t%%" true "a" false}}', 'true "a" false%'),
    ('{{printf "%s" }}{{printf "x" 1}}', "%!s(MISSING)x%!(EXTRA 1)"),
    ("a {{- .Version -}} b", "a2.8.2b"),
    ("a\n{{- /* why */ -}}\nb", "ab"),
    ('{{"}}"}}{{`{{`}}', "}}{{"),
    ('{{"a\\tb\\u00fc"}}', "a\tbü"),
    ("{{if and .Ready (not .Router.Encryption)}}plain{{end}}", "plain"),
    ("{{if or .Router.Encryption .Ready}}yes{{end}}", "yes"),
    ("{{if false}}{{else if .Ready}}yes{{end}}", "yes"),
    ("{{if false}}a{{else if false}}b{{else}}c{{end}}", "c"),
    ("{{if and .DNS .DNS.Domain}}{{.DNS.Domain}}{{end}}", "weave.local."),
    ("{{and .Proxy .Proxy.Addresses | len}}", "0"),
    ("{{index .Router.Peers 0 | len | lt 1}}", "true"),
    ('{{eq .Router.NickName "a" "host1"}}{{ne 1 2}}{{gt 2 1}}{{ge 1 1}}{{le 2 1}}', "truetruetruetruefalse"),
    ("{{range .Router.Connections}}{{.Attrs.encrypted}};{{end}}", "<no value>;<no value>;"),
    ("{{/* nothing */}}x", "x"),
    ("{{.Ready}} {{.Router.Port}} {{.Router.TrustedSubnets}}", "true 6783 []"),
    ("", ""),
    ("no action }} at all", "no action }} at all"),
]


@pytest.mark.parametrize(("template", "expected"), TEMPLATES)
def test_templates(template: str, expected: str) -> None:
    assert render(template, document()) == expected


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{", "template: format:1: unclosed action"),
        ("{{.A", "template: format:1: unclosed action"),
        ("a\n\n{{.A", "template: format:3: unclosed action"),
        ("{{if .Ready}}", "unexpected EOF"),
        ("{{end}}", "unexpected {{end}}"),
        ("{{else}}", "unexpected {{else}}"),
        ("{{if .A}}{{else}}{{else}}{{end}}", "unexpected {{else}}"),
        ('{{template "x"}}', "unsupported action {{template}}"),
        ('{{define "x"}}{{end}}', "unsupported action {{define}}"),
        ("{{range .A}}{{break}}{{end}}", "unsupported action {{break}}"),
        ("{{html .A}}", 'unsupported function "html"'),
        ("{{nosuch .}}", 'function "nosuch" not defined'),
        ("{{}}", "missing value for command"),
        ("{{.A | }}", "missing value for command"),
        ("{{if}}{{end}}", "missing value for if"),
        ("{{$x}}", 'undefined variable "$x"'),
        ("{{$x = 1}}", 'undefined variable "$x"'),
        ("{{if $x := .A}}{{end}}{{$x}}", 'undefined variable "$x"'),
        ("{{(.A}}", "unclosed left paren"),
        ("{{.A)}}", "unexpected <)> in command"),
        ("{{.A % 2}}", "unexpected '%' in action"),
        ("{{1 2}}", "non executable command in pipeline"),
        ("{{if .A}}" * 60, "blocks are nested more than 50 deep"),
        ("{{" + "(" * 60 + ".A" + ")" * 60 + "}}", "brackets are nested more than 50 deep"),
    ],
)
def test_templates_that_cannot_be_read(template: str, text: str) -> None:
    with pytest.raises(TemplateError, match=re.escape(text)):
        render(template, {"A": 1})


@pytest.mark.parametrize(
    "template",
    [
        "{{.Router.Nope}}",
        "{{.Version.X}}",
        "{{.Proxy.Addresses}}",
        "{{index .Router 5}}",
        "{{index .Router.Peers 9}}",
        "{{index .Router.Peers -1}}",
        "{{.Ready 1}}",
        "{{.Ready | .Version}}",
        "{{range .Version}}{{end}}",
        "{{eq 1 true}}",
        "{{eq 1}}",
        "{{lt 1 .Version}}",
        "{{len 5}}",
        '{{printf "%d" "x"}}',
        '{{printf "%9999d" 1}}',
        "{{not}}",
        "{{json}}",
    ],
)
def test_templates_that_cannot_be_filled(template: str) -> None:
    with pytest.raises(ExecutionError):
        render(template, captures.report("idle-single"))


def test_a_template_costs_only_so_much() -> None:
    with pytest.raises(ExecutionError, match="steps"):
        render("{{range .A}}{{range $.A}}{{range $.A}}{{end}}{{end}}{{end}}", {"A": [1] * 1000})
    with pytest.raises(ExecutionError, match="the output is larger"):
        render("{{range .A}}{{$.B}}{{end}}", {"A": [1] * 1000, "B": "x" * 100_000})


@given(st.text(alphabet='{}.-|()$=:" \n0aAlifendrgwthsojx%`,', max_size=60))
def test_any_text_is_filled_or_refused(template: str) -> None:
    try:
        assert isinstance(render(template, {"A": [1, {"x": "y"}], "a": None}), str)
    except (TemplateError, ExecutionError):
        return


def test_version_check_reads_as_text() -> None:
    assert render("{{.V}}", {"V": report.VersionCheck(Enabled=False)}) == "version check update disabled"
