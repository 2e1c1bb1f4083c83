"""Lints and guards the templates as they are, and with each of the planted defects. Called by tests/check-templates."""

import json
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import yaml

CFN_LINT, CFN_GUARD = sys.argv[1:]
TEMPLATES = sorted(Path("infra").glob("*.yaml"))
TEMPLATES = [path for path in TEMPLATES if "AWSTemplateFormatVersion" in path.read_text()]
RULES = Path("infra/rules.guard")
DEFECTS = Path("tests/fixtures/template-defects.yaml")


def main():
    defects = yaml.safe_load(DEFECTS.read_text())
    failures = []
    with tempfile.TemporaryDirectory() as folder:
        mutants = plant(defects, Path(folder))
        # cfn-lint takes a second for each, cfn-guard next to nothing.
        to_lint = TEMPLATES + [path for path, defect in mutants.items() if defect["caught_by"] == "cfn-lint"]
        with ThreadPoolExecutor() as pool:
            linting = [pool.submit(lint, part) for part in (to_lint[::2], to_lint[1::2])]
            guarded = guard([*TEMPLATES, *mutants])
            linted = {path: found for part in linting for path, found in part.result().items()}

        for path in TEMPLATES:
            failures += [f"{path}: cfn-lint: {finding}" for finding in linted[path]]
            failures += [f"{path}: breaks the rule {rule}" for rule in sorted(guarded[path])]

        rows = [(defect, linted.get(path, []), guarded[path]) for path, defect in mutants.items()]
        for defect, by_lint, by_guard in rows:
            failures += missed(defect, by_lint, by_guard)

        rules = set(re.findall(r"^rule (\w+)", RULES.read_text(), re.MULTILINE))
        shown = set().union(*(by_guard for _, _, by_guard in rows))
        failures += [f"no planted defect breaks the rule {rule}" for rule in sorted(rules - shown)]

    print_table(rows)
    if failures:
        print("\n" + "\n".join(failures), file=sys.stderr)
        sys.exit(1)
    here = sum(defect["caught_by"] != "test" for defect in defects)
    print(f"\n{len(TEMPLATES)} templates are sound by cfn-lint and by {len(rules)} rules, each seen to be broken;")
    print(f"{here} planted defects are found, and {len(defects) - here} more are for cargo test")


def missed(defect, by_lint, by_guard):
    """What should have been said about a defect, and was not."""
    check = defect["caught_by"]
    if check == "cfn-lint" and not by_lint:
        return [f"cfn-lint misses: {defect['defect']}"]
    if check == "cfn-guard" and defect["rule"] not in by_guard:
        return [f"the rule {defect['rule']} misses: {defect['defect']}"]
    return []


def print_table(rows):
    print(f"{'file':<20}{'planted defect':<74}caught by")
    for defect, by_lint, by_guard in rows:
        caught = ["cfn-lint " + by_lint[0].split()[0]] if by_lint else []
        caught += [f"cfn-guard {rule}" for rule in sorted(by_guard)]
        if defect["caught_by"] == "test":
            caught.append("cargo test (tests/it/templates.rs)")
        print(f"{defect['file']:<20}{defect['defect']:<74}{', '.join(caught) or 'nothing'}")


def plant(defects, folder):
    """Writes a template for each defect; returns the defects by path."""
    mutants = {}
    for number, defect in enumerate(defects):
        path = folder / f"{number:03}-{defect['file']}"
        path.write_text(with_defect((Path("infra") / defect["file"]).read_text(), defect))
        mutants[path] = defect
    return mutants


def with_defect(text, defect):
    """The template with one line changed. That line has to stand in its section exactly once."""
    lines = text.splitlines(keepends=True)
    found = [number for number in section(lines, defect.get("within")) if lines[number].strip() == defect["before"]]
    if len(found) != 1:
        sys.exit(f"{len(found)} lines to change, not one, for: {defect['defect']}")
    line = lines[found[0]]
    indent = line[: len(line) - len(line.lstrip())]
    lines[found[0]] = f"{indent}{defect['after']}\n" if defect["after"] else ""
    return "".join(lines)


def section(lines, name):
    """The numbers of the lines below `  NAME:`, which may be a parameter's and an output's; without a name all lines."""
    inside = name is None
    for number, line in enumerate(lines):
        if name is not None and re.match(r" {0,2}[^ \n]", line):
            inside = line.rstrip() == f"  {name}:"
        if inside:
            yield number


def lint(paths):
    """What cfn-lint says about each template: `RULE message`. One process for all: it starts slowly."""
    ran = subprocess.run([CFN_LINT, "--format", "json", "--", *paths], capture_output=True, text=True)
    if ran.stderr or ran.returncode & 1:
        sys.exit(f"cfn-lint failed with {ran.returncode}: {ran.stderr or ran.stdout}")
    findings = {path: [] for path in paths}
    for finding in json.loads(ran.stdout or "[]"):
        findings[Path(finding["Filename"])].append(f"{finding['Rule']['Id']} {finding['Message']}")
    return findings


def guard(paths):
    """The rules that each template breaks."""
    ran = subprocess.run(
        [CFN_GUARD, "validate", "--rules", RULES, *(word for path in paths for word in ("--data", path)),
         "--structured", "--output-format", "json", "--show-summary", "none"],
        capture_output=True, text=True,
    )
    if ran.returncode not in (0, 19):
        sys.exit(f"cfn-guard failed with {ran.returncode}: {ran.stderr or ran.stdout}")
    broken = {}
    for report in json.loads(ran.stdout):
        broken[Path(report["name"]).name] = {rule["Rule"]["name"] for rule in report["not_compliant"]}
    return {path: broken[path.name] for path in paths}


main()
