"""Runs a command where no mount namespace can be made, as in most containers: `python nosandbox.py COMMAND…`, as root."""

import ctypes
import os
import sys

_NEWUSER = 0x10000000


def main() -> None:
    inside, outside = os.pipe(), os.pipe()
    child = os.fork()
    if child:
        os.read(inside[0], 1)
        for kind in ("uid_map", "gid_map"):
            with open(f"/proc/{child}/{kind}", "w") as file:
                file.write("0 0 65536")
        os.write(outside[1], b"x")
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    if ctypes.CDLL(None, use_errno=True).unshare(_NEWUSER):
        raise OSError(ctypes.get_errno(), "unshare")
    os.write(inside[1], b"x")
    os.read(outside[0], 1)
    with open("/proc/sys/user/max_mnt_namespaces", "w") as file:
        file.write("0")
    os.execvp(sys.argv[1], sys.argv[1:])


if __name__ == "__main__":
    main()
