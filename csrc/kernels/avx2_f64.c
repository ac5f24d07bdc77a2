#include "types/f64.h"

#include "tiers/avx2.h"

#include "table.h"
