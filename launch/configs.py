# SPDX-License-Identifier: Apache-2.0
"""Lists the configs, or those of a system, with cost, hardware and what they reached.

python -m launch.configs score_sde
"""

from launch import command


def prepare(system: str = "") -> command.Job:
    from launch import catalogue

    listed = catalogue.headers(system)

    def job() -> None:
        for header in listed:
            print(catalogue.described(header, f"--config={header.name}"))

    return job


if __name__ == "__main__":
    SYSTEM = command.leading_word()
    command.run(lambda: prepare(SYSTEM))
