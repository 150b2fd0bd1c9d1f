"""Rule `missing_file`: says which file is missing, and which config key names it."""

from utterflow.errors import UserError
from utterflow.jobs import job_log


def main(path: str, key: str) -> None:
    raise UserError("file not found", where=path, fix=f"put it there, or correct `{key}` in the configuration")


if __name__ == "__main__":
    with job_log(snakemake.log[0]):
        main(snakemake.output[0], snakemake.params.cfg["key"])
