"""The sharding service: raw Parquet in, a sharded dataset out."""
