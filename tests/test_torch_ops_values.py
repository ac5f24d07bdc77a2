"""The tests of values once more, with the backend of torch's own operations in place of the compiled core."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from test_bounds import (  # noqa: F401
    test_minus_one_is_not_above_minus_one,
    test_nothing_is_above_one_and_all_above_less_than_minus_one,
    test_products_that_overflow_are_never_finite_numbers,
    test_rows_of_any_length,
    test_rows_that_are_nearly_parallel,
    test_statistics_stay_within_one,
    test_temperature_tensors_beyond_the_arithmetic_give_nan,
    test_temperatures_and_betas_beyond_the_arithmetic_are_refused,
    test_the_floor_takes_no_gradient_away_from_opposite_rows,
    test_the_small_input,
    test_the_small_input_of_tiny_temperatures,
    test_thresholds_that_round_to_one_are_below_it,
)
from test_extremes import test_core  # noqa: F401
from test_hex_loss import (  # noqa: F401
    test_a_threshold_that_is_nan_gives_nan,
    test_backward_twice_and_in_any_order,
    test_equals_the_reference,
    test_error_is_at_most_twice_plain_pytorch,
    test_float32_at_extreme_temperatures,
    test_golden,
    test_gradcheck,
    test_gradgradcheck,
    test_huge_logits_overflow_to_nan_not_to_numbers,
    test_info_nce_is_hex_without_a_threshold,
    test_large_beta,
    test_negative_similarity_of_one_pair,
    test_quantile_for_every_number_of_keys,
    test_quantile_of_rows_that_span_the_number_format,
    test_queue_without_a_gradient,
    test_rows_of_zeros,
    test_separate_shifts_that_happen_to_be_equal,
    test_statistics_equal_the_reference,
    test_temperature_beyond_float32,
    test_temperature_tensor_gone_wrong,
    test_tiles_and_tails,
    test_variance_of_rows_that_are_nearly_equal,
    test_what_is_not_finite_spreads,
    test_what_is_not_finite_spreads_to_the_same_anchors_as_in_the_reference,
)
from test_large_rows import (  # noqa: F401
    test_a_bank_of_large_rows,
    test_losses_of_large_rows,
    test_nearest_of_large_rows,
    test_pairs_at_small_temperatures,
)

from hexssl import backends


@pytest.fixture(autouse=True)
def _forced() -> Iterator[None]:
    with backends.forced("torch_ops"):
        yield
