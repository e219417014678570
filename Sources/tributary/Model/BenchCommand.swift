/// `tributary bench train`: how fast this machine trains an adapter on a model.

import Adapters
import ArgumentParser
import Checkpoints
import Datasets
import LinearAlgebra
import Model
import Primitives
import Programs
import Training

struct BenchCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "bench", abstract: "Measure this machine.", subcommands: [BenchTrainCommand.self, BenchProductsCommand.self])
}

struct BenchTrainCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "train", abstract: "Measure training steps on random tokens; the first step is not counted.")

    @OptionGroup var base: ModelOptions
    @Option(name: .long, help: "Rank of the adapter on all linear maps.") var rank = 16
    @Option(name: .long, help: "Sequences of a step.") var batchSize = 4
    @Option(name: .long, help: "Tokens of a sequence.") var sequenceLength = 256
    @Option(name: .long, help: "Steps that are measured.") var steps = 5
    @OptionGroup var result: OutputOptions

    func run() throws {
        try Interrupts.watch {}
        var settings = TrainingSettings()
        settings.batchSize = batchSize
        settings.learningRate = 1e-4
        try settings.validate(steps: steps, sequenceLength: sequenceLength)
        try require(steps <= 10_000, "steps is \(steps): at most 10000 are measured")
        let (checkpoint, language) = try base.load()
        let configuration = checkpoint.configuration
        try require(
            sequenceLength <= configuration.maximumPositions,
            "sequence-length is \(sequenceLength), but the model has only \(configuration.maximumPositions) positions: use at most that"
        )
        let specification = try AdapterSpecification(
            method: .lora, maps: configuration.linearMaps, rank: rank, alpha: Double(2 * rank), rankStabilized: false)
        var generator = SeededGenerator(seed: 0, purpose: "bench")
        let model = try AdaptedModel(model: language, weights: specification.initialWeights(&generator))
        let examples = (0..<batchSize * (steps + 1)).map { line in
            Example(
                tokens: (0..<sequenceLength).map { _ in Int32(generator.integer(below: configuration.vocabularySize)) },
                targets: (0..<sequenceLength).map { $0 > 0 }, prompt: [], completion: nil, line: line + 1)
        }
        var line = ProgressLine()
        let clock = ContinuousClock()
        var times: [Double] = []
        var last = clock.now
        let outcome = try LocalTrainer.train(
            model: model, examples: examples, settings: settings, stepRange: 0..<steps + 1, totalSteps: steps + 1,
            generator: SeededGenerator(seed: 0, purpose: "batches")
        ) { progress in
            times.append((clock.now - last) / .seconds(1))
            line.show(done: progress.done, of: progress.count, "step \(progress.done) of \(progress.count)")
            last = clock.now
            return !Interrupts.isInterrupted
        }
        line.finish()
        guard outcome.steps == steps + 1 else { throw Failure(.interrupted, "the measurement was stopped; nothing was kept") }
        let peakMemory = peakGiB()
        let seconds = times.dropFirst().sorted()[steps / 2]
        let operations = Self.operations(configuration, sequences: batchSize, length: sequenceLength)
        let peak =
            language.compute == .bfloat16
            ? BenchProductsCommand.registerPeak(bfloat16: true, threads: Parallel.threadCount)
            : Self.peakOperationsPerSecond()
        let share = operations / seconds / peak
        result.write([
            ("tokens_per_second", real(Double(batchSize * sequenceLength) / seconds)), ("seconds_per_step", real(seconds)),
            ("gemm_peak_share", real(share)), ("peak_gib", real(peakMemory)), ("gemm_peak_gflops", real(peak / 1e9)),
            ("weights", .string(language.weightFormat)), ("compute", .string(language.compute.rawValue)),
            ("batch_size", .integer(batchSize)),
            ("sequence_length", .integer(sequenceLength)), ("rank", .integer(rank)), ("threads", .integer(Parallel.threadCount)),
            ("blas_core", .string(BLAS.coreName)), ("kernels", .string(KernelPath.active.name)),
            ("loss", real(outcome.losses.last ?? 0)),
        ]) {
            """
            \(Readable.decimal(Double(batchSize * sequenceLength) / seconds, 1)) tokens/s, \(Readable.decimal(seconds, 3)) s per step (median of \(steps)), \(Readable.decimal(100 * share, 1)) % of the GEMM peak of \(Readable.decimal(peak / 1e9, 0)) GFLOP/s, \(Readable.decimal(peakMemory, 2)) GiB at most
            weights \(language.weightFormat), compute \(language.compute.rawValue), \(Parallel.threadCount) threads, OpenBLAS core \(BLAS.coreName), kernels \(KernelPath.active.name)

            """
        }
    }

    /// Floating-point operations that a step cannot do without: products with the base's matrices forward (2 a weight)
    /// and back to their inputs (2), the head both ways, and causal attention (half of the square; forward two products,
    /// backward four). The adapter's own and whatever is computed twice do not count.
    static func operations(_ configuration: ModelConfiguration, sequences: Int, length: Int) -> Double {
        let maps = configuration.linearMaps.reduce(0.0) { $0 + Double($1.outputs) * Double($1.inputs) }
        let head = Double(configuration.vocabularySize) * Double(configuration.hiddenSize)
        let tokens = Double(sequences * length)
        let queries = Double(configuration.headCount * configuration.headSize)
        let attention = 6 * 2 * Double(length) * Double(length) / 2 * queries * Double(sequences * configuration.layerCount)
        return 4 * (maps + head) * tokens + attention
    }

    /// What single-precision matrix products reach here, with every thread at work.
    static func peakOperationsPerSecond() -> Double {
        let size = 768
        let threads = Parallel.threadCount
        var generator = SeededGenerator(seed: 0, purpose: "gemm peak")
        let a = (0..<size * size).map { _ in generator.symmetric(1) }
        var results = [Float](repeating: 0, count: threads * size * size)
        let clock = ContinuousClock()
        var best = 0.0
        for _ in 0..<5 {
            let began = clock.now
            let products = 4
            results.withUnsafeMutableBufferPointer { results in
                a.withUnsafeBufferPointer { a in
                    nonisolated(unsafe) let (target, source) = (results.baseAddress!, a.baseAddress!)
                    Parallel.forEach(count: threads) { thread in
                        for _ in 0..<products {
                            gemm(
                                m: size, n: size, k: size, source, lda: size, source, ldb: size, target + thread * size * size,
                                ldc: size)
                        }
                    }
                }
            }
            let seconds = (clock.now - began) / .seconds(1)
            best = max(best, Double(threads * products) * 2 * Double(size * size * size) / seconds)
        }
        return best
    }
}
