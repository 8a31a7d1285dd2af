#include "lanes/neon.h"
#include "rows.inl"
#include "attention.inl"
#include "cache.inl"
#include "table.inl"

const rt::RowKernels* rt::rows_neon() { return table("neon"); }
