/// Gaussian noise on a vector, as a function of the key and each value's index alone.
///
/// Limits. The analysis of the Gaussian mechanism is of real numbers; what is added here are doubles, rounded once more when
/// they meet a value of 32 bits. Mironov 2012 ("On significance of the least significant bits for differential privacy")
/// shows that the lowest bits of a floating-point sum can tell neighbouring inputs apart. We take the noise from a
/// cryptographic generator with 53 bits, as DP libraries for training do, and do not defend against that attack: it needs
/// the exact released bits and noise that is not hidden by further sums.

import CKernels

/// values[i] += N(0, standardDeviation^2), the noise computed in double and the sum rounded once.
///
/// The noise of value i depends on the key and on i only: a vector may be split among threads or calls anywhere.
/// - Parameters:
///   - standardDeviation: finite, at least 0
///   - key: used for one vector only; two vectors under one key get the same noise
///   - firstIndex: the index of values[0], for a part of a longer vector
public func addGaussianNoise(
    to values: inout [Float], standardDeviation: Double, key: NoiseKey, startingAt firstIndex: Int = 0
) {
    values.withUnsafeMutableBufferPointer {
        addGaussianNoise(to: $0, standardDeviation: standardDeviation, key: key, startingAt: firstIndex)
    }
}

/// The same on doubles.
public func addGaussianNoise(
    to values: inout [Double], standardDeviation: Double, key: NoiseKey, startingAt firstIndex: Int = 0
) {
    values.withUnsafeMutableBufferPointer { values in
        forEachPart(of: values.count, from: firstIndex, key: key) { range, noise in
            for index in range { values[index] += standardDeviation * noise[index - range.lowerBound] }
        }
    }
}

/// The same in place.
public func addGaussianNoise(
    to values: UnsafeMutableBufferPointer<Float>, standardDeviation: Double, key: NoiseKey, startingAt firstIndex: Int = 0
) {
    forEachPart(of: values.count, from: firstIndex, key: key) { range, noise in
        for index in range {
            values[index] = Float(Double(values[index]) + standardDeviation * noise[index - range.lowerBound])
        }
    }
}

/// Calls `body` with consecutive ranges of 0..<count and their standard normal values.
private func forEachPart(
    of count: Int, from firstIndex: Int, key: NoiseKey, _ body: (Range<Int>, UnsafeMutableBufferPointer<Double>) -> Void
) {
    precondition(firstIndex >= 0, "an index of noise is at least 0, got \(firstIndex)")
    // 512 blocks: the words and the values of a part stay in the first-level cache's neighbourhood.
    let partCount = 4096
    let end = firstIndex + count
    withUnsafeTemporaryAllocation(of: UInt64.self, capacity: partCount) { words in
        withUnsafeTemporaryAllocation(of: Double.self, capacity: partCount) { noise in
            var start = firstIndex
            while start < end {
                // A part begins on a multiple of its size, wherever the vector begins: pairs and blocks stay whole.
                let partStart = start - start % partCount
                let stop = min(partStart + partCount, end)
                let used = stop - partStart
                let drawn = (used + Keystream.wordsInBlock - 1) / Keystream.wordsInBlock * Keystream.wordsInBlock
                let part = UnsafeMutableBufferPointer(rebasing: words[..<drawn])
                Keystream.fill(part, key: key, nonce: .vector, firstBlock: UInt64(partStart / Keystream.wordsInBlock))
                tributary_gaussian(Keystream.kernelPath, part.baseAddress, noise.baseAddress, drawn)
                body(start - firstIndex..<stop - firstIndex, UnsafeMutableBufferPointer(rebasing: noise[(start - partStart)...]))
                start = stop
            }
        }
    }
}
