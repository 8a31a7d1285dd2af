#include "lanes/base.h"
#include "rows.inl"
#include "attention.inl"
#include "cache.inl"
#include "table.inl"

const rt::RowKernels* rt::rows_base() { return table("base"); }
