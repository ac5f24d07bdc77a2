#include "types/f64.h"

#include "tiers/neon.h"

#include "table.h"
