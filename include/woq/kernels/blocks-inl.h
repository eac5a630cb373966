// SPDX-License-Identifier: Apache-2.0
// The loop over the blocks of a row, for every target.
namespace woq::WOQ_TARGET_NS {

// Calls body(k0, k1, block) for each block of a row.
template <class Body>
WOQ_INLINE void for_each_block(const BlockGeometry& geometry, const Body& body) {
  int64_t k = 0, block = 0;
  for (int64_t g = 0; g < geometry.groups; ++g) {
    const int64_t group_end = geometry.group_end(g);
    for (; k < group_end; ++block) {
      const int64_t end = std::min(group_end, k + kBlock);
      body(k, end, block);
      k = end;
    }
  }
}

}  // namespace woq::WOQ_TARGET_NS
