/// `tributary bench` and `bench train`: how fast this machine trains an adapter on a model.

import Adapters
import ArgumentParser
import Checkpoints
import Datasets
import Glibc
import LinearAlgebra
import Model
import Plan
import Primitives
import Privacy
import Programs
import Training

struct BenchCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "bench", abstract: "Measure this machine.",
        subcommands: [BenchTrainCommand.self, BenchProductsCommand.self, BenchDecodeCommand.self, BenchCodecCommand.self])
}

struct BenchTrainCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "train", abstract: "Measure training steps on random tokens; the first step is not counted.")

    @OptionGroup var base: ModelOptions
    @Option(name: .long, help: "Rank of the adapter on all linear maps.") var rank = 16
    @Option(name: .long, help: "Sequences of a step.") var batchSize = 4
    @Option(name: .long, help: "Tokens of a sequence.") var sequenceLength = 256
    @Option(name: .long, help: "Steps that are measured.") var steps = 5
    @Flag(
        name: .customLong("dp"),
        help: "Also measure steps with example-level differential privacy on the same batch, in turn with ordinary ones.")
    var isPrivate = false
    @Option(name: .long, help: "adamw, adamw8bit (its state in 8 bits) or sgd.") var optimizer = "adamw"
    @OptionGroup var memory: MemoryOptions
    @OptionGroup var result: OutputOptions

    func run() throws {
        try Interrupts.watch {}
        var settings = TrainingSettings()
        settings.batchSize = batchSize
        settings.learningRate = 1e-4
        settings.optimizer = try choice("--optimizer", optimizer, OptimizerName.self)
        try settings.validate(steps: steps, sequenceLength: sequenceLength)
        try require(steps <= 10_000, "steps is \(steps): at most 10000 are measured")
        let checkpoint = try CheckpointFolder(path: base.model)
        let configuration = checkpoint.configuration
        let specification = try AdapterSpecification(
            method: .lora, maps: configuration.linearMaps, rank: rank, alpha: 2 * Double(rank), rankStabilized: false)
        let plan = try memory.plan(
            quantize: base.quantize, compute: base.compute, of: checkpoint, specification: specification, settings: settings,
            sequenceLength: sequenceLength)
        let (_, language) = try base.load()
        var generator = SeededGenerator(seed: 0, purpose: "bench")
        let model = try AdaptedModel(model: language, weights: specification.initialWeights(&generator))
        model.use(plan)
        let examples = (0..<batchSize * (isPrivate ? 1 : steps + 1)).map { line in
            Example(
                tokens: (0..<sequenceLength).map { _ in Int32(generator.integer(below: configuration.vocabularySize)) },
                targets: (0..<sequenceLength).map { $0 > 0 }, prompt: [], completion: nil, line: line + 1)
        }
        var line = ProgressLine()
        var done = 0
        let count = (isPrivate ? 2 * Self.turns : 1) * (steps + 1)
        var loss = 0.0
        /// Blocks of memory that steps after the first took: none, if memory is planned.
        var blocksTakenLater = 0
        /// Seconds of each step but the first, by the clock and by the processors.
        func measure(_ privacy: PrivateTraining? = nil) throws -> (clock: [Double], processor: [Double]) {
            let clock = ContinuousClock()
            var (times, processorTimes): ([Double], [Double]) = ([], [])
            var blocks = 0
            var (last, lastProcessor) = (clock.now, processorSeconds())
            let outcome = try LocalTrainer.train(
                model: model, examples: examples, settings: settings, stepRange: 0..<steps + 1, totalSteps: steps + 1,
                generator: SeededGenerator(seed: 0, purpose: "batches"), privacy: privacy
            ) { _ in
                times.append((clock.now - last) / .seconds(1))
                processorTimes.append(processorSeconds() - lastProcessor)
                if times.count == 1 { blocks = FloatBuffer.blocksTaken }
                done += 1
                line.show(done: done, of: count, "step \(done) of \(count)")
                (last, lastProcessor) = (clock.now, processorSeconds())
                return !Interrupts.isInterrupted
            }
            guard outcome.steps == steps + 1 else {
                throw Failure(.interrupted, "the measurement was stopped; nothing was kept")
            }
            loss = outcome.losses.last ?? 0
            blocksTakenLater = FloatBuffer.blocksTaken - blocks
            return (Array(times.dropFirst()), Array(processorTimes.dropFirst()))
        }
        let tokens = Double(batchSize * sequenceLength)
        if isPrivate {
            let privacy = try PrivateTraining(
                clip: 1, noiseMultiplier: 1, expectedBatchSize: batchSize, samplingRate: 1,
                key: .unsafeSeeded(0, name: "bench"))
            var (ordinary, clipped) = (Double.infinity, Double.infinity)
            var (ordinaryProcessor, clippedProcessor) = (Double.infinity, Double.infinity)
            for _ in 0..<Self.turns {
                let (times, privateTimes) = (try measure(), try measure(privacy))
                ordinary = min(ordinary, times.clock.min()!)
                ordinaryProcessor = min(ordinaryProcessor, times.processor.min()!)
                clipped = min(clipped, privateTimes.clock.min()!)
                clippedProcessor = min(clippedProcessor, privateTimes.processor.min()!)
            }
            line.finish()
            result.write(
                [
                    ("tokens_per_second", real(tokens / ordinary)), ("private_tokens_per_second", real(tokens / clipped)),
                    ("private_time_ratio", real(clipped / ordinary)),
                    ("private_processor_ratio", real(clippedProcessor / ordinaryProcessor)), ("peak_gib", real(peakGiB())),
                ] + setting(language)
            ) {
                """
                \(Readable.decimal(tokens / ordinary, 1)) tokens/s, \(Readable.decimal(tokens / clipped, 1)) with differential privacy: \(Readable.decimal(clipped / ordinary, 3)) times as long a step (the best of \(Self.turns * steps) each), \(Readable.decimal(clippedProcessor / ordinaryProcessor, 3)) times the processors' time

                """
            }
            return
        }
        let times = try measure()
        let seconds = times.clock.sorted()[steps / 2]
        line.finish()
        let peakMemory = peakGiB()
        let operations = Self.operations(
            configuration, adapter: specification.trainedLayout.parameterCount, sequences: batchSize, length: sequenceLength)
        let peak =
            language.compute == .bfloat16
            ? BenchProductsCommand.registerPeak(bfloat16: true, threads: Parallel.threadCount)
            : Self.peakOperationsPerSecond()
        let share = operations / seconds / peak
        result.write(
            [
                ("tokens_per_second", real(tokens / seconds)), ("seconds_per_step", real(seconds)),
                ("processor_seconds_per_step", real(times.processor.sorted()[steps / 2])),
                ("gemm_peak_share", real(share)), ("peak_gib", real(peakMemory)), ("gemm_peak_gflops", real(peak / 1e9)),
                ("blocks_taken_after_first_step", .integer(blocksTakenLater)),
            ] + plan.json + setting(language) + [("loss", real(loss))]
        ) {
            """
            \(Readable.decimal(tokens / seconds, 1)) tokens/s, \(Readable.decimal(seconds, 3)) s per step (median of \(steps)), \(Readable.decimal(100 * share, 1)) % of the GEMM peak of \(Readable.decimal(peak / 1e9, 0)) GFLOP/s, \(Readable.decimal(peakMemory, 2)) GiB at most (planned \(Readable.decimal(Double(plan.peak) / 0x1p30, 2)))
            \(plan.summary)
            weights \(language.weightFormat), compute \(language.compute.rawValue), \(Parallel.threadCount) threads, OpenBLAS core \(BLAS.coreName), kernels \(KernelPath.active.name), optimizer \(optimizer)

            """
        }
    }

    /// How often ordinary and private steps take turns, so that what else the machine does meets both. It disturbs the
    /// processors' time less than the clock's.
    private static let turns = 3

    /// Seconds that this process's threads have run, together.
    private func processorSeconds() -> Double {
        var time = timespec()
        clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time)
        return Double(time.tv_sec) + Double(time.tv_nsec) / 1e9
    }

    /// What a measurement depends on.
    private func setting(_ language: LanguageModel) -> [(String, JSONValue)] {
        [
            ("weights", .string(language.weightFormat)), ("compute", .string(language.compute.rawValue)),
            ("optimizer", .string(optimizer)), ("batch_size", .integer(batchSize)),
            ("sequence_length", .integer(sequenceLength)), ("rank", .integer(rank)), ("threads", .integer(Parallel.threadCount)),
            ("blas_core", .string(BLAS.coreName)), ("kernels", .string(KernelPath.active.name)),
        ]
    }

    /// Floating-point operations that a step cannot do without: products with the base's matrices forward (2 a weight)
    /// and back to their inputs (2), the head both ways, the adapter's (6 a value: its gradient too), and causal attention
    /// (half of the square; forward two products, backward four). Whatever is computed twice does not count.
    static func operations(_ configuration: ModelConfiguration, adapter: Int, sequences: Int, length: Int) -> Double {
        let maps = configuration.linearMaps.reduce(0.0) { $0 + Double($1.outputs) * Double($1.inputs) }
        let head = Double(configuration.vocabularySize) * Double(configuration.hiddenSize)
        let tokens = Double(sequences * length)
        let queries = Double(configuration.headCount * configuration.headSize)
        let attention = 6 * 2 * Double(length) * Double(length) / 2 * queries * Double(sequences * configuration.layerCount)
        return (4 * (maps + head) + 6 * Double(adapter)) * tokens + attention
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
