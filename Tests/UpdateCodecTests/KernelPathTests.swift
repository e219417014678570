/// The selection's kernels: every path finds what sorting finds.

import CKernels
import Primitives
import TestSupport
import Testing

@Suite struct KernelPathTests {
    @Test func everyPathSelectsWhatSortingDoes() {
        for count in Array(1...70) + [127, 1000, 5001] {
            for (name, values) in Samples.awkward(count, seed: UInt64(100 + count)) {
                for keep in Set([1, (count + 9) / 10, count / 2 + 1, count]) {
                    let expected = SparseCodecTests.largest(keep, values).map(UInt32.init)
                    for path in Samples.paths {
                        var threshold: UInt32 = 0
                        var ties = 0
                        tributary_select(path, values, count, keep, 0, &threshold, &ties)
                        let found = [UInt32](unsafeUninitializedCapacity: keep + 16) { target, initialized in
                            initialized = tributary_gather(path, values, count, threshold, &ties, target.baseAddress!)
                        }
                        #expect(found == expected, "\(name), \(keep) of \(count), path \(path)")
                    }
                }
            }
        }
    }

    @Test func everyPathSumsTheSame() {
        for count in [1, 15, 16, 17, 100, 1001] {
            let values = Samples.awkward(count, seed: 9)[0].1
            let results = Samples.paths.map { path in
                var (sum, squares) = (0.0, 0.0)
                tributary_moments(path, values, count, 0.25, &sum, &squares)
                return [sum.bitPattern, squares.bitPattern]
            }
            #expect(Set(results).count == 1)
            let expected = values.reduce(0.0) { $0 + (Double($1) - 0.25) * (Double($1) - 0.25) }
            #expect(abs(Double(bitPattern: results[0][1]) - expected) <= 1e-12 * expected)
        }
    }
}
