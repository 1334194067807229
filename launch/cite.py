# SPDX-License-Identifier: Apache-2.0
"""Prints BibTeX of the papers of a system, or of the paper with an arXiv number.

python -m launch.cite score_sde
"""

import re

from launch import command


def prepare(system: str = "") -> command.Job:
    import yaml

    from launch import catalogue

    if not system:
        raise ValueError("a system is missing, such as score_sde, or an arXiv number")
    cited = yaml.safe_load((command.ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    papers = {paper["notes"].removeprefix("arXiv:"): paper for paper in cited["references"]}
    if system in papers:
        numbers = {system}
    else:
        text = " ".join(header.paper for header in catalogue.headers(system))
        numbers = set(re.findall(r"\d{4}\.\d{5}", text))

    def job() -> None:
        for number in sorted(numbers & papers.keys()):
            print(_bibtex(number, papers[number]))

    return job


def _bibtex(number: str, paper: dict) -> str:
    authors = paper["authors"]
    key = f"{authors[0]['family-names'].lower()}{paper['year']}{number.partition('.')[2]}"
    names = " and ".join(f"{a['family-names']}, {a['given-names']}" for a in authors)
    fields = {"title": f"{{{paper['title']}}}", "author": names, "year": paper["year"]}
    fields |= {"eprint": number, "archivePrefix": "arXiv"}
    lines = ",\n".join(f"  {name} = {{{value}}}" for name, value in fields.items())
    return f"@misc{{{key},\n{lines}\n}}"


if __name__ == "__main__":
    SYSTEM = command.leading_word()
    command.run(lambda: prepare(SYSTEM))
