"""Generates curfew/v1/ from protos/, or checks that the committed code is what the generator gives.

    python tools/protos.py            write curfew/v1/
    python tools/protos.py --check    write nothing; exit 1 and name the files that differ
    python tools/protos.py --release 0.2.0
                                      keep the contracts in protos/released/; nothing of them may go then

Run by `make protos` and `make protos-check` with the interpreter of .venv/proto, which holds the pinned
generator (tools/protos-requirements.txt).
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
RELEASED = PROTOS / "released"
PACKAGE = Path("curfew", "v1")


def generate(into: Path) -> None:
    """Run protoc and its plugins on every contract; the code lands in `into`/curfew/v1.

    Raises:
        subprocess.CalledProcessError: a contract does not compile; protoc has said why on standard error.
    """
    plugins = Path(sys.executable).parent
    command = [sys.executable, "-m", "grpc_tools.protoc", f"--proto_path={PROTOS}"]
    for output in ("python", "grpc_python"):
        command.append(f"--{output}_out={into}")
    for output in ("mypy", "mypy_grpc"):
        command.append(f"--plugin=protoc-gen-{output}={plugins / f'protoc-gen-{output}'}")
        command.append(f"--{output}_out=quiet:{into}")
    command.extend(str(proto) for proto in sorted((PROTOS / PACKAGE).glob("*.proto")))
    subprocess.run(command, check=True)


def generated_files(root: Path) -> dict[str, bytes]:
    """Content by file name of the generated code under `root`."""
    return {path.name: path.read_bytes() for path in (root / PACKAGE).glob("*_pb2*.py*")}


def write(fresh: dict[str, bytes]) -> None:
    """Make curfew/v1/ hold exactly the `fresh` files, beside its `__init__.py`."""
    for name in generated_files(ROOT).keys() - fresh.keys():
        (ROOT / PACKAGE / name).unlink()
    for name, content in fresh.items():
        (ROOT / PACKAGE / name).write_bytes(content)


def differences(fresh: dict[str, bytes]) -> list[str]:
    """One line for each committed file that is missing, stale or left over."""
    committed = generated_files(ROOT)
    found = [f"{name}: not generated yet" for name in fresh.keys() - committed.keys()]
    found += [f"{name}: no contract generates it" for name in committed.keys() - fresh.keys()]
    found += [
        f"{name}: differs from its contract"
        for name in fresh.keys() & committed.keys()
        if fresh[name] != committed[name]
    ]
    return sorted(found)


def released_contracts() -> list[Path]:
    """The contracts of each release, as a set of descriptors."""
    return sorted(RELEASED.glob("*.binpb"))


def release(name: str) -> None:
    """Keep today's contracts as those of a release; from then on nothing of them may go."""
    protos = (str(proto) for proto in sorted((PROTOS / PACKAGE).glob("*.proto")))
    file = RELEASED / f"{name}.binpb"
    command = [sys.executable, "-m", "grpc_tools.protoc", f"--proto_path={PROTOS}", "--include_imports"]
    subprocess.run([*command, f"--descriptor_set_out={file}", *protos], check=True)


def lint() -> bool:
    """Lint the contracts with buf, and compare them with those released; true when they are clean or buf is
    not installed (tests/protos compares them without it).
    """
    buf = shutil.which("buf")
    if buf is None:
        print("protos: lint skipped, buf is not installed (npm install -g @bufbuild/buf)")
        return True
    commands = [[buf, "lint"]]
    commands += [[buf, "breaking", "--against", str(released)] for released in released_contracts()]
    return not any(subprocess.run(command, cwd=ROOT, check=False).returncode for command in commands)


def main() -> int:
    """Generate or check; the exit status."""
    parser = argparse.ArgumentParser(description="Generate curfew/v1/ from protos/.")
    parser.add_argument("--check", action="store_true", help="write nothing, fail when out of date")
    parser.add_argument("--release", metavar="VERSION", help="keep the contracts as those of a release")
    options = parser.parse_args()
    if options.release:
        release(options.release)
        return 0
    check = options.check
    with tempfile.TemporaryDirectory() as scratch:
        try:
            generate(Path(scratch))
        except subprocess.CalledProcessError:
            print("protos: the contracts do not compile", file=sys.stderr)
            return 1
        fresh = generated_files(Path(scratch))
    if not check:
        write(fresh)
        print(f"protos: wrote {len(fresh)} files to {PACKAGE}/")
        return 0
    stale = differences(fresh)
    for line in stale:
        print(f"protos: {PACKAGE}/{line}", file=sys.stderr)
    if stale:
        print("protos: run `make protos` and commit the result", file=sys.stderr)
    clean = lint()
    if stale or not clean:
        return 1
    print(f"protos: {len(fresh)} generated files are up to date")
    return 0


if __name__ == "__main__":
    sys.exit(main())
