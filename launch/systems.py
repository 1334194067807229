# SPDX-License-Identifier: Apache-2.0
"""Lists the systems: their papers, and a config of each that ran here, with cost and result.

python -m launch.systems
"""

import itertools

from launch import command


def prepare() -> command.Job:
    from launch import catalogue

    def job() -> None:
        by_system = lambda header: header.name.partition("/")[0]
        for system, configs in itertools.groupby(catalogue.headers(), by_system):
            configs = list(configs)
            # Digits need no download; else one that runs anywhere, if there is any.
            fitness = lambda c: (
                ("CPU" in c.hardware) + ("digits" in c.name) - ("not run" in c.expected)
            )
            shown = max(configs, key=fitness)
            others = f" and {len(configs) - 1} more" if len(configs) > 1 else ""
            heading = f"{system}: --config={shown.name}{others}\n    {shown.paper}"
            print(catalogue.described(shown, heading))
        print("BrePartition, arXiv:2006.00227, has no configs: scorejax index --help")

    return job


if __name__ == "__main__":
    command.run(prepare)
