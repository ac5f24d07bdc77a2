#include "types/f64.h"

#include "tiers/avx512.h"

#include "table.h"
