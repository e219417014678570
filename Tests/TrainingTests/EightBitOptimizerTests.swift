/// AdamW with moments in 8 bits, held against its definition, bitsandbytes and float32.

import Adapters
import Checkpoints
import LinearAlgebra
import Model
import Plan
import Primitives
import TestSupport
import Testing
import Training

@Suite struct EightBitOptimizerTests {
    func random(_ count: Int, _ purpose: String) -> [Float] {
        var generator = SeededGenerator(seed: 4, purpose: purpose)
        return (0..<count).map { _ in generator.symmetric(1) }
    }

    /// The definition, one value after another, with bitsandbytes' maps from the golden file and a search over all codes.
    struct Reference {
        let firstMap: [Float]
        let secondMap: [Float]

        init() throws {
            let file = try SafetensorsFile(path: Golden.path("quant/quant.safetensors"))
            firstMap = try #require(file.tensors["dynamic8.code.signed"]).floats()
            secondMap = try #require(file.tensors["dynamic8.code.unsigned"]).floats()
        }

        /// Each value as its block's scale and its nearest code give it back.
        func rounded(_ values: [Float], _ map: [Float]) -> [Float] {
            var result: [Float] = []
            for start in stride(from: 0, to: values.count, by: 256) {
                let block = values[start..<min(values.count, start + 256)]
                let scale = block.map(\.magnitude).max()!
                for value in block {
                    let unit = scale > 0 ? Double(value / scale) : 0
                    // Of two equally near the lower; a second moment that is not zero stays so.
                    var best = map[0] == 0 && unit > 0 ? 1 : 0
                    for code in best..<256 where abs(Double(map[code]) - unit) < abs(Double(map[best]) - unit) { best = code }
                    result.append(map[best] * scale)
                }
            }
            return result
        }

        /// Steps of one tensor at the rate 0.01 / t with a decay of 0.1.
        func train(_ start: [Float], gradients: [[Float]]) -> [Float] {
            var w = start
            var (m, v) = ([Float](repeating: 0, count: w.count), [Float](repeating: 0, count: w.count))
            for (index, g) in gradients.enumerated() {
                let rate = 0.01 / Double(index + 1)
                var (first, second) = (1.0, 1.0)
                for _ in 0...index { (first, second) = (first * 0.9, second * 0.999) }
                for i in w.indices {
                    m[i] = m[i] + (g[i] - m[i]) * Float(1 - 0.9)
                    v[i] = v[i] * Float(0.999) + g[i] * g[i] * Float(1 - 0.999)
                    let divisor = v[i].squareRoot() / Float((1 - second).squareRoot()) + Float(1e-8)
                    w[i] = w[i] * Float(1 - rate * 0.1) - Float(rate / (1 - first)) * (m[i] / divisor)
                }
                guard w.count >= 4096 else { continue }
                (m, v) = (rounded(m, firstMap), rounded(v, secondMap))
            }
            return w
        }
    }

    // Tensors on both sides of the limit, whose last blocks are not full, and small ones beside one another.
    static let counts = [4095, 17, 4096, 5001, 300, 4357]

    @Test(arguments: KernelPath.supported) func everyTensorFollowsItsDefinition(_ path: KernelPath) throws {
        let reference = try Reference()
        let count = Self.counts.reduce(0, +)
        let start = random(count, "values")
        // Gradients over six decades, and some that are zero.
        let gradients = (0..<4).map { step in
            zip(random(count, "gradient \(step)"), random(count, "size \(step)")).map { $0 * $1 * $1 * $1 * ($1 > 0.9 ? 0 : 1) }
        }
        var optimizer = Optimizer(.adamw8bit, tensorCounts: Self.counts, weightDecay: 0.1, path: path)
        var values = start
        for (index, gradient) in gradients.enumerated() {
            optimizer.step(&values, gradient: gradient, learningRate: 0.01 / Double(index + 1))
        }
        var offset = 0
        for count in Self.counts {
            let range = offset..<offset + count
            let expected = reference.train(Array(start[range]), gradients: gradients.map { Array($0[range]) })
            // One unit in the last place: the powers of the decays are not computed in the same way.
            #expect(
                zip(values[range], expected).allSatisfy { $0 == $1 || abs($0 - $1) <= max($0.ulp, $1.ulp) }, "\(count) values")
            offset += count
        }
    }

    @Test func theFirstStepIsThatOfFloat32AndTheSecondIsNear() {
        let start = random(8192, "values")
        // Of sizes from a half to 1: a moment's code is off by at most half a step of its map's highest decade.
        let gradient = random(8192, "gradient").map { $0 < 0 ? $0 / 2 - 0.5 : $0 / 2 + 0.5 }
        var results: [[[Float]]] = []
        for name in [OptimizerName.adamw, .adamw8bit] {
            var optimizer = Optimizer(name, tensorCounts: [8192])
            var values = start
            results.append(
                (0..<2).map { _ in
                    optimizer.step(&values, gradient: gradient, learningRate: 0.01)
                    return values
                })
        }
        #expect(results[0][0] == results[1][0])
        // First moment: 0.9 x (0.9 / 64 / 2) x 0.1 of at least 0.19 / 2; second: (0.9 / 128 / 2) of at least 1 / 4, halved by the root.
        let bound: Float = 0.01 * (0.9 * 0.00704 * 0.1 / 0.095 + 0.00352 * 4 / 2) * 1.02
        let difference = zip(results[0][1], results[1][1]).map { abs($0 - $1) }.max()!
        #expect(difference > 0 && difference <= bound, "\(difference) \(bound)")
    }

    /// What bitsandbytes 0.50.2 made of it on a CPU, with torch 2.15:
    ///
    ///     i = torch.arange(4608)
    ///     draw = lambda a, b: ((i * a + b) % 65521 - 32760).float() / 32768
    ///     w = torch.nn.Parameter(draw(7919, 13))
    ///     optimizer = bitsandbytes.optim.AdamW8bit([w], lr=0.01, weight_decay=0.1)
    ///     for t in range(5):
    ///         w.grad = draw(104729, 1009 * t)
    ///         optimizer.step()
    ///     print((w.detach() - draw(7919, 13))[::192].tolist())
    ///
    /// Its codes are not always the nearest, but those of these values are; float32 AdamW is 0.7 % away.
    static let changes: [Double] = [
        0.05455416440963745, -0.046770334243774414, -0.049209266901016235, -0.0517144650220871, -0.0529513955116272,
        0.035047829151153564, 0.051030755043029785, 0.04975643754005432, 0.0482846200466156, 0.04626995325088501,
        -0.04549294710159302, -0.047434449195861816, -0.04971165955066681, -0.05138784646987915, -0.05059325695037842,
        0.05154454708099365, 0.05118906497955322, 0.04980362951755524, 0.047793567180633545, -0.02220362424850464,
        -0.046018898487091064, -0.04850998520851135, -0.050368860363960266, -0.05265927314758301,
    ]

    @Test func fiveStepsFollowBitsandbytes() {
        func draw(_ factor: Int, _ offset: Int) -> [Float] {
            (0..<4608).map { Float(($0 * factor + offset) % 65521 - 32760) / 32768 }
        }
        let start = draw(7919, 13)
        func changes(_ name: OptimizerName) -> [Double] {
            var optimizer = Optimizer(name, tensorCounts: [4608], weightDecay: 0.1)
            var values = start
            for step in 0..<5 { optimizer.step(&values, gradient: draw(104729, 1009 * step), learningRate: 0.01) }
            return stride(from: 0, to: 4608, by: 192).map { Double(values[$0] - start[$0]) }
        }
        let closeness = Closeness(changes(.adamw8bit), Self.changes)
        #expect(closeness.isWithin(norm: 1e-4), "\(closeness)")
        #expect(!Closeness(changes(.adamw), Self.changes).isWithin(norm: 5e-3))
    }

    @Test func gradientsOfVeryDifferentSizesInABlockMakeNoLongSteps() {
        // One channel of 64 a thousand times the others, as activations of language models have them.
        var optimizer = Optimizer(.adamw8bit, tensorCounts: [4096])
        var longest: Float = 0
        for step in 0..<50 {
            var values = [Float](repeating: 0, count: 4096)
            var gradient = random(4096, "gradient \(step)")
            for index in stride(from: 0, to: 4096, by: 64) { gradient[index] *= 1000 }
            optimizer.step(&values, gradient: gradient, learningRate: 1)
            longest = max(longest, values.map(\.magnitude).max()!)
        }
        #expect(longest < 3, "\(longest)")
    }

    @Test func resultsDoNotDependOnThreadsAndTheStateIsTwoBytesAValue() {
        let counts = [200_001, 40, 150_000]
        let count = counts.reduce(0, +)
        func run() -> [Float] {
            var optimizer = Optimizer(.adamw8bit, tensorCounts: counts)
            var values = random(count, "values")
            for step in 0..<3 { optimizer.step(&values, gradient: random(count, "gradient \(step)"), learningRate: 0.01) }
            return values
        }
        let reference = run()
        #expect(Parallel.limited(toThreads: 1) { run() } == reference)
        #expect(Parallel.limited(toThreads: 2) { run() } == reference)
        // Codes of whole blocks, two scales a block, and the small tensor's floats.
        let blocks = 782 + 586
        #expect(Optimizer(.adamw8bit, tensorCounts: counts).stateByteCount == 2 * (256 + 4) * blocks + 8 * 40)
        #expect(Optimizer(.adamw, tensorCounts: counts).stateByteCount == 8 * count)
        #expect(Optimizer(.sgd, tensorCounts: counts).stateByteCount == 0)
    }

    /// A golden model with a fresh adapter whose tensors all have 4,096 values or more.
    func train(_ optimizer: OptimizerName, _ ranges: [Range<Int>], start: AdapterState? = nil) throws -> TrainingOutcome {
        let golden = try GoldenCase("llama-gqa")
        let maps = golden.model.model.linearMaps.filter { min($0.inputs, $0.outputs) >= 64 }
        let specification = try AdapterSpecification(method: .lora, maps: maps, rank: 64, alpha: 64, rankStabilized: false)
        var generator = SeededGenerator(seed: 1, purpose: "lora-a")
        var weights = specification.initialWeights(&generator)
        #expect(weights.trained.layout.tensors.allSatisfy { $0.count >= Optimizer.smallestCoded })
        if let start { weights.trained = start }
        let model = try AdaptedModel(model: golden.model.model, weights: weights)
        var settings = TrainingSettings()
        settings.optimizer = optimizer
        settings.batchSize = golden.examples.count
        settings.learningRate = 1e-3
        var outcome: TrainingOutcome?
        for range in ranges {
            outcome = try LocalTrainer.train(
                model: model, examples: golden.examples, settings: settings, stepRange: range, totalSteps: 50,
                generator: SeededGenerator(seed: 0, purpose: "batches"))
        }
        return outcome!
    }

    @Test func fiftyStepsLearnAsFloat32Does() throws {
        let exact = try train(.adamw, [0..<50])
        let coded = try train(.adamw8bit, [0..<50])
        #expect(exact.losses.last! < 0.8 * exact.losses[0])
        for (loss, reference) in zip(coded.losses, exact.losses) {
            #expect(abs(loss - reference) <= 0.01 * reference, "\(loss) \(reference)")
        }
        #expect(coded.weights != exact.weights)
    }

    @Test func theStateStartsAnewWithEachCall() throws {
        let first = try train(.adamw8bit, [0..<2])
        let both = try train(.adamw8bit, [0..<2, 2..<4])
        #expect(both.weights == (try train(.adamw8bit, [2..<4], start: first.weights.trained)).weights)
        #expect(both.weights != (try train(.adamw8bit, [0..<4])).weights)
    }
}
