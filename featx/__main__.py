"""``python -m featx`` is the command ``featx``."""

from featx._cli import main

if __name__ == "__main__":
    main()
