"""`law towers`: every tower that has a name here, or what one name stands for."""

import argparse
import json

from llava.errors import UsageError
from llava.model.multimodal_encoder.known import families, missing_packages, towers
from llava.model.multimodal_encoder.registry import parse_replacements, plain, resolve
from llava.model.multimodal_encoder.spec import SELECTS, TowerSpec

HEAD = ("name", "size", "grid", "tokens", "layer", "width", "projector", "needs")


def main(argv: list[str]) -> None:
    """Prints the table of towers, or one representation in full."""
    parser = argparse.ArgumentParser(
        prog="law towers",
        description="Every vision tower: input size, grid, tokens, layer read, width of a token, "
        "width of the projector's input, packages needed.",
    )
    parser.add_argument("name", nargs="?", help="show what this name or combination stands for")
    parser.add_argument("--select", choices=SELECTS, help="with NAME: which tokens")
    parser.add_argument("--tower-alias", action="append", default=[], metavar="OLD=NEW")
    parser.add_argument("--json", action="store_true", help="as JSON")
    arguments = parser.parse_args(argv)
    if arguments.name is None and (arguments.select or arguments.tower_alias):
        raise UsageError("--select and --tower-alias need a NAME: `law towers NAME --select cls`")
    if arguments.name is not None:
        replace = parse_replacements(arguments.tower_alias)
        found = resolve(arguments.name, select=arguments.select, replace=replace)
        if arguments.json:
            print(json.dumps(plain(found), indent=2))
            return
        print(_table([_row(part.id, part) for part in found.parts]))
        rows, columns = found.grid
        print(f"\n{found.name}: grid {rows} x {columns}, projector input {found.dim}")
        return
    if arguments.json:
        print(json.dumps([plain(resolve(name)) for name in towers()], indent=2))
        return
    for family in families().values():
        missing = missing_packages(family)
        state = f"missing {', '.join(missing)}: {family.install}" if missing else "ready"
        print(f"{family.summary} ({state})")
        if family.towers:
            print(_table([_row(spec.id, spec) for spec in family.towers]))
        if family.aliases:
            print("  also: " + ", ".join(f"{a} = {t}" for a, t in family.aliases.items()))
        print()
    print(
        "Any local folder or hub id of these families works too; '.' or '+' joins several, "
        "NAME@336 sets the size of a flexible one (*)."
    )


def _row(name: str, spec: TowerSpec) -> list[str]:
    rows, columns = spec.grid
    needs = ", ".join(families()[spec.family].needs) or "-"
    return [
        name,
        f"{spec.size}{'*' if spec.flexible else ''}",
        f"{rows} x {columns}",
        str(spec.tokens),
        f"{spec.block} of {spec.depth}",
        str(spec.dim),
        str(spec.dim),
        needs + (" (gated)" if spec.gated else ""),
    ]


def _table(rows: list[list[str]]) -> str:
    table = [list(HEAD), *rows]
    widths = [max(len(row[i]) for row in table) for i in range(len(HEAD))]
    lines = []
    for row in table:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:-1], widths[1:-1], strict=True)]
        lines.append("  " + "  ".join([*cells, row[-1]]))
    return "\n".join(lines)
