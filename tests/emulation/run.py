#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Runs a static test binary on an emulated CPU with AVX-512 (bochs, model tigerlake).

    run.py [--build-dir DIR] [--timeout SECONDS] BINARY [ARGUMENT...]

The CPU has AVX-512 F/BW/VL/DQ/VBMI/VNNI; no BF16, AVX-VNNI or AMX. The binary must be static, not
position independent and single-threaded, and finds no files. Its output and exit status become
ours; about 100 million instructions a second. User-mode emulators (qemu-user 7.2) lack AVX-512,
hence the whole machine with a mini kernel of our own.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import pty
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import termios
from pathlib import Path

SOURCES = Path(__file__).resolve().parent
PACKAGES = "bochs bochsbios vgabios bochs-term isolinux syslinux-common xorriso"
BEGIN_MARK = "[emulation begins]\n"
END_MARK = re.compile(r"\n?\[emulation ends\] ([0-9a-f]+) after ([0-9a-f]+)\n")
ISOLINUX = Path("/usr/lib/ISOLINUX/isolinux.bin")
SYSLINUX_MODULES = Path("/usr/lib/syslinux/modules/bios")
MODULE_NAMES = ("ldlinux.c32", "mboot.c32", "libcom32.c32")

# Code that runs below an operating system: no vector registers, no red zone, no runtime helpers.
KERNEL_FLAGS = (
    "-O2 -Wall -Wextra -Werror -std=gnu11 -mgeneral-regs-only -mno-red-zone -ffreestanding "
    "-fno-pic -fno-stack-protector -fcf-protection=none -fno-builtin -fno-strict-aliasing "
    "-mcmodel=small"
).split()

BOCHS_CONFIG = """\
megs: 1024
romimage: file=/usr/share/bochs/BIOS-bochs-latest
vgaromimage: file=/usr/share/bochs/VGABIOS-lgpl-latest
cpu: model=tigerlake, count=1, ips=100000000, reset_on_triple_fault=0
display_library: term
plugin_ctrl: unmapped=1, biosdev=1, speaker=0, extfpuirq=1, parallel=0, gameport=0, usb_uhci=0
speaker: enabled=0, mode=system
sound: waveoutdrv=dummy, waveindrv=dummy, midioutdrv=dummy
ata0: enabled=1, ioaddr1=0x1f0, ioaddr2=0x3f0, irq=14
ata0-master: type=cdrom, path=disk.iso, status=inserted
boot: cdrom
clock: sync=none, time0=local
log: bochs.log
panic: action=fatal
error: action=report
info: action=report
debug: action=ignore
port_e9_hack: enabled=1
"""


def missing_tools() -> list[str]:
    commands = [name for name in ("bochs", "xorriso", "gcc", "objcopy") if not shutil.which(name)]
    files = [ISOLINUX, *(SYSLINUX_MODULES / name for name in MODULE_NAMES)]
    return commands + [str(path) for path in files if not path.exists()]


def build_kernel(build_dir: Path) -> Path:
    """Compiles the mini kernel (a second) as a 32-bit ELF file, which is what multiboot loads."""
    build_dir.mkdir(parents=True, exist_ok=True)
    objects = []
    for source in ("boot.S", "kernel.c", "syscalls.c"):
        objects.append(str(build_dir / f"{source}.o"))
        subprocess.run(
            ["gcc", *KERNEL_FLAGS, "-c", str(SOURCES / source), "-o", objects[-1]], check=True
        )
    linked, kernel = build_dir / "kernel64.elf", build_dir / "kernel.elf"
    link = "ld -n -z max-page-size=4096 -z noexecstack --no-warn-rwx-segments".split()
    subprocess.run(
        [*link, "-T", str(SOURCES / "kernel.ld"), "-o", str(linked), *objects], check=True
    )
    subprocess.run(["objcopy", "-O", "elf32-i386", str(linked), str(kernel)], check=True)
    return kernel


def build_disk(work: Path, kernel: Path, binary: Path, arguments: list[str]) -> None:
    disk = work / "disk"
    (disk / "isolinux").mkdir(parents=True)
    for path in (ISOLINUX, *(SYSLINUX_MODULES / name for name in MODULE_NAMES)):
        shutil.copy(path, disk / "isolinux")
    shutil.copy(kernel, disk / "kernel.elf")
    subprocess.run(["strip", "-o", str(disk / "program"), str(binary)], check=True)
    command_line = " ".join(["/program", *arguments])
    (disk / "isolinux" / "isolinux.cfg").write_text(
        "DEFAULT program\nPROMPT 0\nTIMEOUT 1\nLABEL program\n KERNEL mboot.c32\n"
        f" APPEND /kernel.elf --- {command_line}\n"
    )
    boot = (
        "-b isolinux/isolinux.bin -c isolinux/boot.cat -no-emul-boot -boot-load-size 4 "
        "-boot-info-table"
    )
    subprocess.run(
        [*"xorriso -as mkisofs -quiet -o disk.iso".split(), *boot.split(), "disk"],
        cwd=work,
        check=True,
        stderr=subprocess.DEVNULL,
    )


def emulate(work: Path, timeout: float) -> str:
    """Boots the disk and returns everything that the emulator wrote."""
    (work / "bochsrc").write_text(BOCHS_CONFIG)
    (work / "debugger").write_text("c\n")  # Debian's bochs starts in its debugger: continue
    output = work / "output"
    # The text display wants a terminal of the size of a VGA screen, and shows nothing we need.
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 60, 160, 0, 0))
    with output.open("wb") as sink:
        process = subprocess.Popen(
            ["bochs", "-q", "-f", "bochsrc", "-rc", "debugger"],
            cwd=work,
            env={**os.environ, "TERM": "xterm"},
            stdin=slave,
            stdout=sink,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        finally:
            os.close(slave)
            os.close(master)
    return output.read_text(errors="replace").replace("\r", "")


def main() -> int:
    parser = argparse.ArgumentParser(description="run a static test binary on an AVX-512 emulator")
    parser.add_argument("--build-dir", type=Path, default=Path("build/emulation"))
    parser.add_argument("--timeout", type=float, default=600)
    parser.add_argument("binary", type=Path)
    parser.add_argument("arguments", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    missing = missing_tools()
    if missing:
        print(f"emulation: missing {', '.join(missing)}: apt-get install {PACKAGES}")
        return 127
    kernel = build_kernel(options.build_dir)
    with tempfile.TemporaryDirectory(prefix="emulation-") as name:
        work = Path(name)
        build_disk(work, kernel, options.binary, options.arguments)
        text = emulate(work, options.timeout)
        _, _, text = text.partition(BEGIN_MARK)
        end = END_MARK.search(text)
        print(text[: end.start() if end else None])
        if end is None:
            log = (work / "bochs.log").read_text(errors="replace").splitlines()
            print(f"emulation: no end within {options.timeout:.0f} s; the emulator's last words:")
            print("\n".join(log[-10:]))
            return 124
    print(f"emulation: exit status {int(end[1], 16)}, {int(end[2], 16) / 1e9:.1f}e9 instructions")
    return int(end[1], 16)


if __name__ == "__main__":
    sys.exit(main())
