"""Caption every image of a folder: several at a time, with progress, retries and resume.

python caption_folder.py FOLDER captions.jsonl --question "What do you see?"

Each line of the result is {"image": ..., "caption": ...}, or has "error" instead. A run that was
cut off goes on: images with a caption are skipped, those with an error are tried again.
"""

import argparse
import asyncio
import json
from pathlib import Path

from images import API_KEY, BASE_URL, MODEL, show
from openai import APIConnectionError, APIStatusError, AsyncOpenAI
from tqdm import tqdm

KINDS = {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp"}


def done(result: Path) -> set[str]:
    """Images that have a caption; a last line that was cut off does not count."""
    captioned = set()
    if result.exists():
        for line in result.read_text(encoding="utf-8").splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if "caption" in entry:
                captioned.add(entry["image"])
    return captioned


async def caption(client: AsyncOpenAI, image: Path, question: str) -> dict:
    """The entry of one image; an image that cannot be used is no reason to stop."""
    try:
        answer = await client.chat.completions.create(
            model=MODEL, messages=[show(str(image), question)], temperature=0, max_tokens=200
        )
    except APIStatusError as error:
        return {"error": error.body["message"] if isinstance(error.body, dict) else str(error)}
    return {"caption": answer.choices[0].message.content.strip()}


async def main() -> None:
    """Caption what has no caption yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("result", type=Path)
    parser.add_argument("--question", default="What do you see?")
    parser.add_argument("--concurrency", type=int, default=8)
    arguments = parser.parse_args()

    images = sorted(p for p in arguments.folder.rglob("*") if p.suffix.lower() in KINDS)
    captioned = done(arguments.result)
    left = [p for p in images if str(p.relative_to(arguments.folder)) not in captioned]
    print(f"{len(images)} images, {len(images) - len(left)} have a caption already")
    # The client waits and tries again on 429 and 503, as Retry-After says.
    client = AsyncOpenAI(base_url=BASE_URL, api_key=API_KEY, max_retries=8)
    gate = asyncio.Semaphore(arguments.concurrency)
    if arguments.result.exists() and not arguments.result.read_bytes().endswith(b"\n"):
        with arguments.result.open("a", encoding="utf-8") as out:
            out.write("\n")  # after a line that was cut off

    with arguments.result.open("a", encoding="utf-8") as out, tqdm(total=len(left)) as bar:

        async def one(image: Path) -> None:
            async with gate:
                entry = await caption(client, image, arguments.question)
            name = str(image.relative_to(arguments.folder))
            out.write(json.dumps({"image": name, **entry}, ensure_ascii=False) + "\n")
            out.flush()  # so that nothing is lost when it is cut off
            bar.update()

        await asyncio.gather(*(one(image) for image in left))


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except APIConnectionError:
        raise SystemExit(f"No server answers at {BASE_URL}. Start one with: make demo") from None
    except KeyboardInterrupt:
        raise SystemExit("Stopped; run it again to go on.") from None
