// A loop whose rounds run side by side.
#pragma once

#include <functional>

namespace denseport {

// Calls ``work`` with 0 to ``count`` - 1 from up to ``threads`` threads; throws what the first round that failed threw.
void parallel(int count, int threads, const std::function<void(int)>& work);

}  // namespace denseport
