/// Keys, streams and vectors of noise: their bits, their distribution, and what they depend on.

import CKernels
import Glibc
import Primitives
import Privacy
import Testing

@Suite struct NoiseTests {
    private let key = NoiseKey.unsafeSeeded(5, name: "tests")

    @Test func derivedKeysDifferInEveryParameter() {
        let context = Digest(of: [1])
        let keys = [
            key, key.derived("noise"), key.derived("batches"), key.derived("noise", round: 1),
            key.derived("noise", attempt: 1), key.derived("noise", round: 256), key.derived("noise", context: context),
            key.derived("noise", context: Digest(of: [2])), key.derived("noise").derived("noise"),
            NoiseKey.unsafeSeeded(6, name: "tests"), NoiseKey.unsafeSeeded(5, name: "test"), NoiseKey.random(), NoiseKey.random(),
        ]
        #expect(Set(keys.map(\.bytes)).count == keys.count)
        #expect(
            key.derived("noise", round: 3, attempt: 2, context: context)
                == key.derived("noise", round: 3, attempt: 2, context: context))
        #expect(NoiseKey.unsafeSeeded(5, name: "tests") == key)
    }

    @Test func aKeyIsNotPrinted() {
        var dumped = ""
        dump(key, to: &dumped)
        let texts = ["\(key)", String(reflecting: key), "\([key])", dumped]
        for text in texts { #expect(text.contains("secret") && !text.contains("\(key.bytes[0]), "), "\(text)") }
    }

    @Test func aStreamIsUniformAndItsCoinsAreFair() {
        var stream = NoiseStream(key: key)
        let count = 200_000
        var bins = [Int](repeating: 0, count: 100)
        var heads = 0
        for _ in 0..<count {
            bins[Int(stream.uniform() * 100)] += 1
            if stream.bernoulli(0.3) { heads += 1 }
        }
        let expected = Double(count) / 100
        let chiSquare = bins.reduce(0) { $0 + (Double($1) - expected) * (Double($1) - expected) / expected }
        // 99 degrees of freedom: mean 99, standard deviation 14.1.
        #expect(abs(chiSquare - 99) < 5 * 14.1)
        #expect(abs(Double(heads) - 0.3 * Double(count)) < 5 * (0.21 * Double(count)).squareRoot())
        #expect(!stream.bernoulli(0) && stream.bernoulli(1))
    }

    @Test func gaussiansHaveTheMomentsTailsAndIndependenceOfTheNormalDistribution() {
        let count = 1_000_000
        var values = [Double](repeating: 0, count: count)
        addGaussianNoise(to: &values, standardDeviation: 1, key: key)
        let n = Double(count)
        let moments = (1...4).map { power in values.reduce(0) { $0 + pow($1, Double(power)) } / n }
        // Moments 0, 1, 0, 3, with variances 1, 2, 15 and 96 a value.
        for (moment, (mean, variance)) in zip(moments, [(0.0, 1.0), (1, 2), (0, 15), (3, 96)]) {
            #expect(abs(moment - mean) < 5 * (variance / n).squareRoot())
        }
        for bound in [0.5, 1, 2, 3, 4] {
            for sign in [-1.0, 1] {
                let probability = erfc(bound / 2.0.squareRoot()) / 2
                let beyond = Double(values.count { sign * $0 > bound })
                #expect(abs(beyond - n * probability) < 5 * (n * probability).squareRoot() + 1, "beyond \(sign * bound)")
            }
        }
        for distance in [1, 2, 8] {
            let correlation = zip(values, values.dropFirst(distance)).reduce(0) { $0 + $1.0 * $1.1 } / n
            #expect(abs(correlation) < 5 / n.squareRoot())
        }
        var stream = NoiseStream(key: key)
        let drawn = (0..<200_000).map { _ in stream.gaussian() }
        let drawnCount = Double(drawn.count)
        let mean = drawn.reduce(0, +) / drawnCount
        let square = drawn.reduce(0) { $0 + $1 * $1 } / drawnCount
        #expect(abs(mean) < 5 / drawnCount.squareRoot())
        #expect(abs(square - 1) < 5 * (2 / drawnCount).squareRoot())
    }

    @Test func theLogarithmAndTheCircleAgreeWithTheSystemsLibrary() {
        var generator = SeededGenerator(seed: 22, purpose: "box muller")
        var words = (0..<4096).map { _ in generator.next() }
        // The ends: u = 2^-53 and 1, angles 0 and just below 1, the middle of every eighth.
        words += [0, 0, .max, .max, .max, 0, 0, .max] + (0..<16).flatMap { [1 << 63, UInt64($0) << 60] }
        for path: Int32 in 0...2 where tributary_path_supported(path) != 0 {
            var values = [Double](repeating: 0, count: words.count)
            tributary_gaussian(path, words, &values, words.count)
            var worst = 0.0
            for pair in 0..<words.count / 2 {
                let u = (Double(words[2 * pair] >> 11) + 1) * 0x1p-53
                let angle = 2 * Double.pi * (Double(words[2 * pair + 1] >> 11) * 0x1p-53)
                let radius = (-2 * log(u)).squareRoot()
                worst = max(worst, abs(values[2 * pair] - radius * cos(angle)), abs(values[2 * pair + 1] - radius * sin(angle)))
            }
            #expect(worst < 1e-14)
        }
    }

    @Test func everyPathGivesTheSameBitsAtEveryCount() {
        var generator = SeededGenerator(seed: 23, purpose: "gaussian paths")
        for count in [1, 2, 15, 16, 17, 100, 1001] {
            let words = (0..<count).map { _ in generator.next() }
            let all = (0...2 as ClosedRange<Int32>).filter { tributary_path_supported($0) != 0 }.map { path in
                var values = [Double](repeating: 0, count: count)
                tributary_gaussian(path, words, &values, count)
                return values
            }
            for values in all { #expect(values == all[0]) }
        }
    }

    @Test func noiseDependsOnKeyAndIndexOnly() {
        let count = 20_001
        var whole = [Float](repeating: 0, count: count)
        addGaussianNoise(to: &whole, standardDeviation: 2, key: key)
        for width in [1, 3, 8, 777, 4096, 5000] {
            var parts: [Float] = []
            // Single values are slow to draw: a thousand of them do.
            let end = width < 8 ? 1000 : count
            for start in stride(from: 0, to: end, by: width) {
                var part = [Float](repeating: 0, count: min(width, end - start))
                addGaussianNoise(to: &part, standardDeviation: 2, key: key, startingAt: start)
                parts += part
            }
            #expect(parts.elementsEqual(whole.prefix(end)), "parts of \(width)")
        }
        var other = [Float](repeating: 0, count: count)
        addGaussianNoise(to: &other, standardDeviation: 2, key: key.derived("other"))
        #expect(zip(whole, other).count { $0 == $1 } < 5)
        var doubles = [Double](repeating: 0, count: count)
        addGaussianNoise(to: &doubles, standardDeviation: 2, key: key)
        #expect(doubles.map(Float.init) == whole)
    }

    @Test func noiseIsAddedAndNoneIsNone() {
        var values: [Float] = [1, 2, 3]
        addGaussianNoise(to: &values, standardDeviation: 0, key: key)
        #expect(values == [1, 2, 3])
        var noise: [Float] = [0, 0, 0]
        addGaussianNoise(to: &noise, standardDeviation: 0.5, key: key)
        addGaussianNoise(to: &values, standardDeviation: 0.5, key: key)
        for index in 0..<3 { #expect(abs(values[index] - noise[index] - Float(index + 1)) < 1e-6) }
        var none: [Float] = []
        addGaussianNoise(to: &none, standardDeviation: 1, key: key)
    }

    /// Section 3 of the project's notes on federated LoRA: E|noise in B A|^2, the noise independent on every trained value.
    @Test func theEnergyOfNoiseInTheProductIsWhatTheFactorsSay() {
        let (m, n, r, s, draws) = (23, 17, 3, 0.4, 4000)
        let deviation = s
        func gaussians(_ count: Int, _ name: String, _ draw: Int, _ deviation: Double = 1) -> [Double] {
            var values = [Double](repeating: 0, count: count)
            addGaussianNoise(to: &values, standardDeviation: deviation, key: key.derived(name, round: draw))
            return values
        }
        /// [rows, inner] x [inner, columns]
        func product(_ a: [Double], _ b: [Double], _ rows: Int, _ inner: Int, _ columns: Int) -> [Double] {
            var out = [Double](repeating: 0, count: rows * columns)
            for i in 0..<rows {
                for k in 0..<inner { for j in 0..<columns { out[i * columns + j] += a[i * inner + k] * b[k * columns + j] } }
            }
            return out
        }
        func energy(_ values: [Double]) -> Double { values.reduce(0) { $0 + $1 * $1 } }
        func energy(_ a: [Double], minus b: [Double]) -> Double { energy(zip(a, b).map { $0 - $1 }) }
        /// Rows made orthonormal (Gram and Schmidt).
        func orthonormalRows(_ rows: Int, _ columns: Int, _ name: String) -> [Double] {
            var a = gaussians(rows * columns, name, 0)
            for i in 0..<rows {
                for k in 0..<i {
                    let dot = (0..<columns).reduce(0) { $0 + a[i * columns + $1] * a[k * columns + $1] }
                    for j in 0..<columns { a[i * columns + j] -= dot * a[k * columns + j] }
                }
                let norm = (0..<columns).reduce(0) { $0 + a[i * columns + $1] * a[i * columns + $1] }.squareRoot()
                for j in 0..<columns { a[i * columns + j] /= norm }
            }
            return a
        }
        let a = gaussians(r * n, "A", 0)
        let b = gaussians(m * r, "B", 0)
        let clean = product(b, a, m, r, n)
        let rowsOfA = orthonormalRows(r, n, "orthonormal A")
        let transposedB = orthonormalRows(r, m, "orthonormal B")
        let columnsOfB = (0..<m * r).map { transposedB[$0 % r * m + $0 / r] }
        var (both, bOnly, rOnly) = (0.0, 0.0, 0.0)
        for draw in 0..<draws {
            var noisyA = a
            addGaussianNoise(to: &noisyA, standardDeviation: deviation, key: key.derived("noise A", round: draw))
            var noisyB = b
            addGaussianNoise(to: &noisyB, standardDeviation: deviation, key: key.derived("noise B", round: draw))
            both += energy(product(noisyB, noisyA, m, r, n), minus: clean)
            bOnly += energy(product(noisyB, a, m, r, n), minus: clean)
            let noiseR = gaussians(r * r, "noise R", draw, deviation)
            rOnly += energy(product(product(columnsOfB, noiseR, m, r, r), rowsOfA, m, r, n))
        }
        let variance = deviation * deviation
        let inA = variance * Double(m) * energy(a)
        let expected = inA + variance * Double(n) * energy(b) + variance * variance * Double(m * n * r)
        #expect(abs(both / Double(draws) / expected - 1) < 0.02)
        #expect(abs(bOnly / Double(draws) / inA - 1) < 0.02)
        #expect(abs(rOnly / Double(draws) / (variance * Double(r * r)) - 1) < 0.04, "independent of m and n")
    }

    @Test func fiveMillionValuesTakeATenthOfASecond() {
        var values = [Float](repeating: 0, count: 5_000_000)
        let best = (0..<3).map { _ in
            ContinuousClock().measure { addGaussianNoise(to: &values, standardDeviation: 1, key: key) }
        }.min()!
        // Generous, for busy machines: 50 ms are usual.
        #expect(best < .milliseconds(600), "\(best)")
        if getenv("TRIBUTARY_MEASURE") != nil { print("5,000,000 values of noise: \(best)") }
    }
}
