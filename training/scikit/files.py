"""An estimator as bytes, by skops: nothing is unpickled, and only scikit-learn's own types are trusted."""

from sklearn.base import BaseEstimator
from skops import io

from shoal.cluster.errors import ConfigError, DataError

# Beside what skops trusts, which is less. What a partial calls is looked at by itself.
_TRUSTED = ("sklearn.", "functools.partial")


def to_bytes(estimator: BaseEstimator, path: str) -> bytes:
    """Store an estimator.

    Raises
    ------
    ConfigError
        If it holds what could not be loaded again.
    """
    data: bytes = io.dumps(estimator)
    if others := _others(data):
        raise ConfigError(
            f"model.import: {path} holds {', '.join(others)}, which a trained model may not: loading trusts scikit-learn's own "
            "types alone. Leave it out, or use it in shoal crossval, which stores no models"
        )
    return data


def from_bytes(data: bytes, where: str) -> BaseEstimator:
    """Load an estimator.

    Raises
    ------
    DataError
        If it is damaged, or holds other types than scikit-learn's.
    """
    try:
        if others := _others(data):
            raise DataError(
                f"the model in {where} holds {', '.join(others)}, which are not scikit-learn's: it is not loaded. Train it again"
            )
        found = io.loads(data, trusted=io.get_untrusted_types(data=data))
    except DataError:
        raise
    except Exception as error:  # whatever a file of another version of scikit-learn's leads to
        raise DataError(
            f"the model in {where} cannot be loaded: {type(error).__name__}: {error}; load it with the version of scikit-learn's "
            "that provenance.json names, or train it again"
        ) from error
    assert isinstance(found, BaseEstimator)
    return found


def _others(data: bytes) -> list[str]:
    return [name for name in io.get_untrusted_types(data=data) if not name.startswith(_TRUSTED)]
