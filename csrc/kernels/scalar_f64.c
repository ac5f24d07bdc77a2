#include "types/f64.h"

#include "tiers/scalar.h"

#include "table.h"
