"""``python -m vora_serve``: the command for launchers, as ``torchrun -m vora_serve pretrain``."""

from vora_serve.cli import main

if __name__ == "__main__":
    main()
