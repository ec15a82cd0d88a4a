"""``python -m recbole_lea.cache``: what the cache holds, and what of it can go.

What is heavy is imported late: ``--help`` needs no torch.
"""

from datetime import datetime
from pathlib import Path

from recbole_lea.arguments import Parser, path
from recbole_lea.console import console


def main() -> None:
    """Parse the command line, list the cache's folders or remove some."""
    parser = Parser(
        "python -m recbole_lea.cache",
        "What the cache holds. Any of its folders may be deleted while no run uses it: it is "
        "computed again when it is needed.",
        keys=False,
    )
    does = "the cache (default: lea_cache)"
    parser.add_argument("--lea_cache_dir", type=path, default="lea_cache", metavar="DIR", help=does)
    does = "remove what nothing in the cache needs: see docs/running.md"
    parser.add_argument("--prune", action="store_true", help=does)
    does = "with --prune: say what would be removed, and remove nothing"
    parser.add_argument("--dry-run", action="store_true", help=does)
    options = parser.read()
    if options.dry_run and not options.prune:
        raise ValueError("--dry-run belongs to --prune")
    from recbole_lea.store.inventory import inventory, needless

    held = inventory(Path(options.lea_cache_dir))
    if not options.prune:
        _list(held)
        return
    freed = 0
    for one, why in list(needless(held)):
        done = options.dry_run or one.remove()
        what = "would remove" if options.dry_run else "removed" if done else "in use, not removed:"
        freed += one.size if done else 0
        print(f"{what} {one.folder} ({_size(one)}): {why}")
    print(f"{'would free' if options.dry_run else 'freed'} {freed / 1e6:,.1f} MB")


def _list(held: list) -> None:
    rows = [("dataset", "stage", "LLM", "size", "last use", "folder")]
    for one in held:
        used = datetime.fromtimestamp(one.used).strftime("%Y-%m-%d %H:%M")
        stage = one.stage if one.finished else f"{one.stage} (unfinished)"
        rows.append((one.dataset or "(all)", stage, one.llm, _size(one), used, str(one.folder)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        cells[3] = row[3].rjust(widths[3])
        print("  ".join(cells).rstrip())
    print(f"{len(held)} folders, {sum(one.size for one in held) / 1e6:,.1f} MB")


def _size(one) -> str:
    return f"{one.size / 1e6:,.1f} MB"


if __name__ == "__main__":
    console(main)
