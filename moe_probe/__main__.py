"""``python -m moe_probe`` is ``moe-probe``."""

from moe_probe.cli import main

if __name__ == "__main__":
    main()
