"""Builds the native extension; everything else about the package stands in pyproject.toml.

Two shared objects, both on PyTorch's stable ABI, loaded with ``torch.ops.load_library`` and free of Python symbols:
``libsparc_cpu.so`` needs a C++17 compiler only, ``libsparc_cuda.so`` needs nvcc, but neither a GPU nor a CUDA build
of PyTorch.

Environment: ``SPARC_BUILD_CUDA`` = ``auto`` (default: where nvcc is found), ``0`` or ``1`` (fail without nvcc);
``SPARC_CUDA_ARCHITECTURES`` = compute capabilities to build for, such as ``90`` or ``80,90``, with PTX of the lowest
(default: all below, with PTX of the lowest and the newest);
``CXX``, ``CUDA_HOME`` and ``MAX_JOBS`` as usual.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
CSRC = ROOT / "csrc"
CUDA_ARCHITECTURES = ("80", "90", "100", "120")
# Every *_isa.cpp is compiled once for each of these (csrc/common/isa.h).
INSTRUCTION_SETS = ("baseline", "avx2", "avx512", "avx512_bf16")

# The library uses nothing that is newer than this release of PyTorch, so one build serves it and every later one.
TORCH_TARGET = "-DTORCH_TARGET_VERSION=0x020a000000000000"
# No -march: the kernels choose their instruction set at run time. No -ffast-math: NaN must stay NaN.
CXX_FLAGS = [
    "-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-fvisibility-inlines-hidden", "-fno-math-errno",
    "-fno-trapping-math", "-Wall", "-Wextra", "-Wno-psabi", TORCH_TARGET,
]  # fmt: skip


def torch_root() -> Path:
    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        raise RuntimeError("building sparc_kernels needs PyTorch >= 2.10 installed (its headers and libraries)")
    return Path(next(iter(spec.submodule_search_locations)))


def find_nvcc() -> Path | None:
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    if home:  # named by the user: look nowhere else
        candidates = [Path(home, "bin", "nvcc")]
    else:
        on_path = shutil.which("nvcc")
        candidates = [Path("/usr/local/cuda/bin/nvcc"), *([Path(on_path).resolve()] if on_path else [])]
    return next((path for path in candidates if path.is_file()), None)


def wanted_nvcc() -> Path | None:
    """The nvcc to build the CUDA half with, or None where it is not to be built."""
    choice = os.environ.get("SPARC_BUILD_CUDA", "auto")
    if choice not in ("auto", "0", "1"):
        raise RuntimeError(f"SPARC_BUILD_CUDA must be auto, 0 or 1, got {choice!r}")
    if choice == "0":
        return None
    nvcc = find_nvcc()
    if nvcc is None and choice == "1":
        raise RuntimeError("SPARC_BUILD_CUDA=1, but no nvcc was found (CUDA_HOME, else /usr/local/cuda or PATH)")
    return nvcc


def cuda_architectures(nvcc: Path) -> list[str]:
    listed = subprocess.run([nvcc, "--list-gpu-arch"], check=True, capture_output=True, text=True).stdout
    known = set(re.findall(r"compute_(\d+)", listed))
    if wanted := os.environ.get("SPARC_CUDA_ARCHITECTURES"):
        named = re.split(r"[,; ]+", wanted.strip())
        if unknown := [arch for arch in named if arch not in known or int(arch) < 80]:
            raise RuntimeError(
                f"SPARC_CUDA_ARCHITECTURES must list compute capabilities from 80 on that {nvcc} knows "
                f"({', '.join(sorted(known, key=int))}), got {', '.join(map(repr, unknown))}"
            )
        return sorted(set(named), key=int)
    chosen = [arch for arch in CUDA_ARCHITECTURES if arch in known]
    if not chosen:
        raise RuntimeError(f"{nvcc} knows none of the architectures {', '.join(CUDA_ARCHITECTURES)}")
    return chosen


def cuda_targets(nvcc: Path) -> list[str]:
    """What nvcc makes: code for the architectures, and PTX, which the driver compiles for devices that no code fits.

    The PTX of the lowest one serves every device from there on; that of Blackwell serves what comes later better.
    """
    architectures = cuda_architectures(nvcc)
    chosen_by_user = bool(os.environ.get("SPARC_CUDA_ARCHITECTURES"))
    heads = [*dict.fromkeys(virtual_architecture(arch, architectures) for arch in architectures)]
    portable = heads[:1] if chosen_by_user else heads
    return [*(f"sm_{arch}" for arch in architectures), *(f"compute_{arch}" for arch in portable)]


def virtual_architecture(arch: str, architectures: list[str]) -> str:
    """The one whose PTX an architecture's code is made from: the lowest of those before Blackwell, or from there on.

    PTX takes nvcc twice the time that code does. Of these kernels that for 80 and 90 is the same, and that for 100 and
    120, but for the name of the target; that for 80 and 100 is not (compared line by line, nvcc 13.0).
    """
    return next(head for head in architectures if (int(head) >= 100) == (int(arch) >= 100))


def generated(targets: list[str], *, each: bool) -> list[str]:
    """nvcc's flags for the targets: from as little PTX as will do, or each from its own."""
    architectures = [target.removeprefix("sm_") for target in targets if target.startswith("sm_")]
    made: dict[str, list[str]] = {}
    for target in targets:
        number = target.partition("_")[2]
        made.setdefault(number if each else virtual_architecture(number, architectures), []).append(target)
    return [f"-gencode=arch=compute_{head},code=[{','.join(codes)}]" for head, codes in made.items()]


def compression(nvcc: Path) -> list[str]:
    """Code as small as it gets, for seconds of nvcc's time. By itself it takes Zstandard too from release 13 on; before
    that, drivers may be in use that cannot read it."""
    printed = subprocess.run([nvcc, "--version"], check=True, capture_output=True, text=True).stdout
    release = re.search(r"release (\d+)", printed)
    return ["--compress-mode=size"] if release and int(release.group(1)) >= 13 else []


def builds_warpgroups(nvcc: Path) -> bool:
    """Whether `*_warpgroup.cu` is built: its instructions exist in sm_90a alone, which no other device runs."""
    return "90" in cuda_architectures(nvcc)


def ninja_escape(path: object) -> str:
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


class BuildNative(build_ext):
    """Compiles with ninja, so that sources build side by side and only what changed is built again."""

    def get_ext_filename(self, fullname: str) -> str:
        return fullname.replace(".", os.sep) + ".so"  # no Python version in the name: no Python symbol inside

    def run(self) -> None:
        if self.editable_mode:  # the folder that pip names is a new one each time, in which nothing is built yet
            self.build_temp = str(ROOT / "build" / "editable")
        super().run()

    def copy_extensions_to_source(self) -> None:
        for ext in self.extensions:  # a running process may have the old file mapped: replace it, do not overwrite it
            target = ROOT / self.get_ext_filename(self.get_ext_fullname(ext.name))
            target.unlink(missing_ok=True)
        super().copy_extensions_to_source()

    def build_extension(self, ext: Extension) -> None:
        output = Path(self.get_ext_fullpath(ext.name)).resolve()
        work = Path(self.build_temp).resolve() / ext.name
        work.mkdir(parents=True, exist_ok=True)
        output.parent.mkdir(parents=True, exist_ok=True)
        sources = [(ROOT / source).resolve() for source in ext.sources]
        rules = self.cuda_rules() if ext.name.endswith("_cuda") else self.cpu_rules()
        lines = [rules, f"build {ninja_escape(output)}: link $"]
        builds = []
        for source in sources:
            rule = "cxx"
            if source.suffix == ".cu":
                each = "__CUDA_ARCH__" in source.read_text()
                rule = "nvcc_warpgroup" if source.stem.endswith("_warpgroup") else "nvcc_each" if each else "nvcc"
            for isa in INSTRUCTION_SETS if source.stem.endswith("_isa") else ("",):
                stem = str(source.relative_to(CSRC)).replace(os.sep, "_")
                obj = ninja_escape(work / f"{stem}{isa}.o")
                builds.append(f"build {obj}: {rule} {ninja_escape(source)}")
                if isa:
                    builds.append(f"  isa = -DSPARC_FOR_{isa.upper()}")
                lines.append(f"    {obj} $")
        (work / "build.ninja").write_text("\n".join([*lines, "", *builds, ""]))
        command = [sys.executable, "-m", "ninja", "-C", str(work)]
        if os.environ.get("MAX_JOBS"):
            command += ["-j", os.environ["MAX_JOBS"]]
        if self.verbose > 1:
            command.append("-v")
        subprocess.run(command, check=True)

    def cpu_rules(self) -> str:
        return compile_rule(CXX_FLAGS) + link_rule(["-ltorch_cpu", "-Wl,--no-undefined"])

    def cuda_rules(self) -> str:
        nvcc = wanted_nvcc()
        assert nvcc is not None
        home = nvcc.parent.parent
        targets = cuda_targets(nvcc)
        flags = [*CXX_FLAGS, "-DUSE_CUDA", f"-I{home / 'include'}", f"-DSPARC_CUDA_ARCHITECTURES={','.join(targets)}"]
        if builds_warpgroups(nvcc):
            flags.append("-DSPARC_WARPGROUPS")
        nvcc_flags = ["-std=c++17", "-O3", "-Xcompiler=-fPIC,-fvisibility=hidden", TORCH_TARGET, "-DUSE_CUDA"]
        nvcc_flags += compression(nvcc)
        nvcc_rule = "".join(
            f"rule {name}\n  command = {nvcc} {' '.join([*nvcc_flags, *made])} -I{CSRC} "
            "-MMD -MF $out.d -c $in -o $out\n  depfile = $out.d\n  deps = gcc\n\n"
            for name, made in (
                ("nvcc", generated(targets, each=False)),
                ("nvcc_each", generated(targets, each=True)),
                ("nvcc_warpgroup", ["-gencode=arch=compute_90a,code=sm_90a"]),
            )
        )
        # libtorch pulls in libtorch_cuda where PyTorch has one; its symbols are looked up when the library is loaded.
        libraries = [
            "-ltorch_cpu", "-Wl,--push-state,--no-as-needed", "-ltorch", "-Wl,--pop-state",
            f"-L{home / 'lib64'}", "-lcudart_static", "-lrt", "-ldl", "-lpthread",
        ]  # fmt: skip
        return compile_rule(flags) + nvcc_rule + link_rule(libraries)


def compile_rule(flags: list[str]) -> str:
    compiler = os.environ.get("CXX", "g++")
    flags = [*flags, f"-I{CSRC}", f"-isystem {torch_root() / 'include'}"]
    return (
        f"rule cxx\n  command = {compiler} {' '.join(flags)} $isa -MMD -MF $out.d -c $in -o $out\n"
        "  depfile = $out.d\n  deps = gcc\n\n"
    )


def link_rule(libraries: list[str]) -> str:
    compiler = os.environ.get("CXX", "g++")
    flags = f"-shared -Wl,-s -L{torch_root() / 'lib'} {' '.join(libraries)}"
    return f"rule link\n  command = {compiler} $in {flags} -o $out\n\n"


class AnyPythonWheel(bdist_wheel):
    """Tags the wheel ``py3-none-<platform>``: the shared objects know nothing of the interpreter."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


def extensions() -> list[Extension]:
    headers = [str(path.relative_to(ROOT)) for suffix in ("h", "cuh") for path in sorted(CSRC.rglob(f"*.{suffix}"))]

    def sources(*patterns: str) -> list[str]:
        return [str(path.relative_to(ROOT)) for pattern in patterns for path in sorted(CSRC.glob(pattern))]

    on_cuda = set(sources("**/*_cuda.cpp", "**/*.cu"))
    on_cpu = [path for path in sources("**/*.cpp") if path not in on_cuda]
    built = [Extension("sparc_kernels.libsparc_cpu", on_cpu, depends=headers)]
    if (nvcc := wanted_nvcc()) is not None:
        # refuses a wrong choice before anything is compiled
        left_out = set() if builds_warpgroups(nvcc) else set(sources("**/*_warpgroup.cu"))
        built.append(Extension("sparc_kernels.libsparc_cuda", sorted(on_cuda - left_out), depends=headers))
    return built


setup(ext_modules=extensions(), cmdclass={"build_ext": BuildNative, "bdist_wheel": AnyPythonWheel})
