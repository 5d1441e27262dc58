"""The service attacked, at full size.  python -m tests.siege

`test_siege` does the same with fewer callers.
"""

import asyncio
import json
import random
from collections import Counter
from dataclasses import asdict

from tests.siege.attacks import crowd, flooded, stop_at_random


async def main() -> None:
    print("a crowd:", json.dumps(await crowd(5000), indent=2), flush=True)
    outcomes: Counter[str] = Counter()
    for number in range(50):
        outcomes += await stop_at_random(random.Random(number))
    print("told to stop in a burst of 30, 50 times:", json.dumps(outcomes, indent=2), flush=True)
    print("a flood:", json.dumps(asdict(await flooded(400, 14)), indent=2))


if __name__ == "__main__":
    asyncio.run(main())
