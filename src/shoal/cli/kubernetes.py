"""`shoal k8s render`: what a job looks like on Kubernetes."""

from pathlib import Path
from typing import Annotated

import typer

from shoal.cli.jobs import refuse_verb
from shoal.cli.options import Common, Compare, FindLearningRate, ListLayers, verb
from shoal.cli.output import Output


def add_kubernetes(app: typer.Typer) -> None:
    """Add ``k8s`` to a command line, for those of its verbs that take an experiment."""
    kubernetes = typer.Typer(help="Jobs on Kubernetes, with KubeRay.", no_args_is_help=True)
    app.add_typer(kubernetes, name="k8s")

    @kubernetes.callback()
    def top() -> None:
        """Jobs on Kubernetes, with KubeRay."""

    @kubernetes.command()
    @verb(time_limit=("TIME", "End the job after 90s, 10m, 6h (default: 1d)."))
    def render(
        common: Common,
        name: Annotated[str, typer.Argument(metavar="VERB", help="train, crossval …", show_default=False)],
        config: Annotated[
            str, typer.Argument(metavar="CONFIG", help="Experiment file, YAML.", show_default=False)
        ],
        image: Annotated[
            str | None,
            typer.Option("--image", help="Image with its version (default: shoal:VERSION-cpu or -cuda)."),
        ] = None,
        worker_memory: Annotated[
            str, typer.Option("--worker-memory", metavar="AMOUNT", help="Memory of each worker's pod.")
        ] = "4Gi",
        compare: Compare = None,
        find_learning_rate: FindLearningRate = False,
        list_layers: ListLayers = False,
    ) -> Output:
        """Print the Kubernetes objects of a job, for kubectl apply."""
        refuse_verb(app, name)
        experiment = common.load(config)
        from shoal.verbs.elsewhere import Options
        from shoal.verbs.manifests import DAY
        from shoal.verbs.manifests import render as run

        result = run(
            name,
            experiment,
            common.out,
            name=Path(config).stem,
            options=Options(compare, find_learning_rate, list_layers),
            image=image,
            worker_memory=worker_memory,
            deadline=common.time_limit or DAY,
        )
        for notice in result.notices:
            common.reporter().notice(notice)
        return Output(result.as_dict(), [result.yaml.rstrip("\n")])
