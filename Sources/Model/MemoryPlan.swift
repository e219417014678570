/// What training an adapter takes, part by part, before anything is loaded.

import Adapters
import Checkpoints
import LinearAlgebra
import Primitives
import Quantization

/// The memory of training, from shapes alone. The sum is the peak of the resident set, which mapped files count towards
/// with what is read of them.
public struct MemoryPlan: Sendable {
    public struct Part: Sendable {
        public let name: String
        public let bytes: Int
        /// Pages of a file, which the system may take back and read again.
        public let isMapped: Bool
    }

    /// What is trained, and how.
    public struct Training: Sendable {
        public var specification: AdapterSpecification
        public var sequences: Int
        public var sequenceLength: Int
        /// Bytes of the optimizer's moments.
        public var optimizerBytes: Int
        public var weights: WeightForm
        public var compute: ComputeType
        public var savedActivations: ComputeType
        /// Of FLoRA's correction beside the base; 0 elsewhere.
        public var correctionRank = 0
        /// Bytes of single examples' gradients and of their sum, under example-level privacy.
        public var privateBytes = 0
        /// Copies of the trained values that whoever trains holds beside the model's own.
        public var copies = 1

        public init(
            specification: AdapterSpecification, sequences: Int, sequenceLength: Int, optimizerBytes: Int, weights: WeightForm,
            compute: ComputeType, savedActivations: ComputeType
        ) {
            self.specification = specification
            self.sequences = sequences
            self.sequenceLength = sequenceLength
            self.optimizerBytes = optimizerBytes
            self.weights = weights
            self.compute = compute
            self.savedActivations = savedActivations
        }
    }

    public let parts: [Part]
    public let blockCount: Int
    /// Blocks whose activations wait for the backward pass; the others run again.
    public let savedBlocks: Int
    /// Tokens that run at once.
    public let tokensAtOnce: Int
    /// What `AdaptedModel.activationMemoryLimit` has to be.
    public let activationLimit: Int
    public let savedActivations: ComputeType

    /// Bytes at most.
    public var peak: Int { parts.reduce(0) { $0 + $1.bytes } }

    /// The program's own code, its libraries, and what it has read of configuration and tokenizer.
    private static let program = 30 << 20

    /// - Parameter limit: bytes that `peak` shall not be above; nil for `ActivationMemory.defaultLimit` of activations
    /// - Throws: `Failure` if not even running every block again meets the limit
    public init(_ training: Training, of checkpoint: CheckpointFolder, limit: Int? = nil) throws(Failure) {
        let configuration = checkpoint.configuration
        // Shorter sequences than the longest fill a part up, and one sequence alone may have more.
        let tokens = max(
            training.sequenceLength, min(training.sequences * training.sequenceLength, ActivationMemory.tokensAtOnce))
        tokensAtOnce = tokens
        blockCount = configuration.layerCount
        savedActivations = training.savedActivations

        var (held, mapped) = (0, 0)
        for map in configuration.linearMaps {
            let name = map.name + ".weight"
            if let format = training.weights.format {
                held += Int(format.bitsPerWeight * Double(map.outputs * map.inputs) / 8)
                continue
            }
            let isReadInPlace = try checkpoint.tensor(name).isPlainFloats && !checkpoint.isQuantized(map.name)
            if training.weights == .none, !isReadInPlace {
                held += 4 * map.outputs * map.inputs
                continue
            }
            for tensor in checkpoint.tensorNames where tensor == name || tensor.hasPrefix(name + ".") {
                mapped += try checkpoint.tensor(tensor).range.count
            }
        }
        if let pooler = configuration.pooler, checkpoint.isQuantized(pooler.name) { held += 4 * pooler.outputs * pooler.inputs }
        for (name, shape) in configuration.denseTensors where shape.count == 2 {
            let bytes = try checkpoint.tensor(name).range.count
            let isRead =
                configuration.isEncoder
                ? !name.contains("word_embeddings") : configuration.tieWordEmbeddings || !name.contains("embed_tokens")
            // Of an embedding that is no head, only the pages of the rows in use.
            mapped += isRead ? bytes : min(bytes, tokens * max(4096, bytes / max(1, shape[0])))
        }

        let specification = training.specification
        let trained = specification.trainedLayout.parameterCount
        var frozen = specification.frozenLayout?.parameterCount ?? 0
        var widths: [String: Int] = [:]
        for map in specification.maps {
            // As a federation's correction is bounded: see `GlobalCorrection.largestRank`.
            let stack = min(training.correctionRank, 2 * min(map.outputs, map.inputs))
            frozen += stack * (map.outputs + map.inputs)
            let branch = AdapterBinding.largestBranchRank(outputs: map.outputs, inputs: map.inputs, as: training.compute)
            if stack > branch {
                held += QuantizedMatrix.sumByteCount(rows: map.outputs, columns: map.inputs, as: training.compute)
            }
            // A correction that ends up in its matrix was a branch before.
            widths[map.layerPath, default: 0] +=
                specification.rank * (specification.method == .loraSB ? 2 : 1) + min(stack, branch)
        }
        let width = widths.values.max() ?? 0
        let work: (sizes: RecordSizes, workspace: Int, head: Int, attention: Attention)
        if configuration.isEncoder {
            let shape = EncoderShape(configuration, projectionWidth: width, compute: training.compute)
            work = (
                EncoderRecord.widths(shape).sizes(tokens: tokens), EncoderWorkspace.byteCount(shape, tokens: tokens), 0,
                shape.attention
            )
        } else {
            let readsAttended = specification.method == .lora && specification.maps.contains { $0.moduleName == "o_proj" }
            let shape = BlockShape(
                configuration, projectionWidth: width, compute: training.compute, keepsAttended: readsAttended)
            work = (
                BlockRecord.widths(shape).sizes(tokens: tokens), BlockWorkspace.byteCount(shape, tokens: tokens),
                LanguageHead.byteCount(
                    vocabulary: configuration.vocabularySize, hidden: configuration.hiddenSize, count: tokens,
                    compute: training.compute), shape.attention
            )
        }
        let record = ActivationMemory.bytes(work.sizes, saved: training.savedActivations)
        let residuals = 4 * tokens * configuration.hiddenSize * (configuration.layerCount + 3)
        let state = 4 * tokens * configuration.hiddenSize * 4
        let threads = Parallel.threadCount
        let scratch = threads * (ActivationMemory.scratchBytes + work.attention.scratchByteCount(keys: training.sequenceLength))
        let fixed: [Part] = [
            Part(name: "program and libraries", bytes: Self.program, isMapped: false),
            Part(name: "weights of linear maps", bytes: held, isMapped: false),
            Part(name: "weights read from the model's files", bytes: mapped, isMapped: true),
            Part(name: "adapter and its copies", bytes: 4 * (1 + training.copies) * (trained + frozen), isMapped: false),
            Part(name: "gradient", bytes: 4 * trained + training.privateBytes, isMapped: false),
            Part(name: "optimizer", bytes: training.optimizerBytes, isMapped: false),
            Part(name: "inputs of blocks", bytes: residuals, isMapped: false),
            Part(
                name: "one block at work",
                bytes: work.workspace + 4 * (work.sizes.exact + work.sizes.rounded + work.sizes.passing),
                isMapped: false),
            Part(name: "head and loss", bytes: work.head + state, isMapped: false),
            Part(name: "threads", bytes: scratch, isMapped: false),
        ]
        let sum = fixed.reduce(0) { $0 + $1.bytes }
        if let limit, sum > limit {
            throw Failure(
                .usage,
                "--memory-limit is \(limit >> 20) MiB, but training needs \((sum >> 20) + 1) MiB even if every block runs twice: raise the limit, or lower --sequence-length, --batch-size or --rank"
            )
        }
        activationLimit = min(limit.map { $0 - sum } ?? ActivationMemory.defaultLimit, configuration.layerCount * record)
        savedBlocks = min(configuration.layerCount, activationLimit / max(1, record))
        parts = fixed + [Part(name: "activations of \(savedBlocks) blocks", bytes: savedBlocks * record, isMapped: false)]
    }
}
