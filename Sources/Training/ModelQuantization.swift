/// A checkpoint with the linear maps of its blocks in 4 bits, as bitsandbytes stores them and transformers loads them.

import Adapters
import Checkpoints
import LinearAlgebra
import Primitives
import Quantization

public struct ModelQuantization: Sendable {
    public var format: any FourBitFormat.Type = NF4.self
    public var blockSize = NF4.defaultBlockSize
    /// Whether the scales are quantized too, as bitsandbytes' double quantization.
    public var nested = true
    /// The largest file of weights.
    public var shardBytes = ModelFolderWriting.shardBytes
    /// Whether the weights' error is measured, which reads them a second time.
    public var measuresError = false
    /// An adapter that makes up for a part of the error, with weights quantized for it.
    public var start: Start?

    public struct Start: Sendable {
        public var order: QuantizationStart.Order
        /// In model order.
        public var maps: [LinearMap]
        public var rank: Int
        /// Of the adapter, alpha / rank.
        public var scale: Float
        /// The most steps of the alternation.
        public var steps: Int
        public var seed: UInt64

        public init(order: QuantizationStart.Order, maps: [LinearMap], rank: Int, scale: Float, steps: Int, seed: UInt64) {
            (self.order, self.maps, self.rank, self.scale, self.steps, self.seed) = (order, maps, rank, scale, steps, seed)
        }
    }

    public struct Outcome: Sendable {
        /// Of every linear map in model order, where errors are measured or a start is made.
        public let errors: [QuantizationStart.MapError]
        /// The start's factors in model order.
        public let entries: [PEFTAdapter.Entry]
    }

    public init() {}

    /// Writes the folder, one tensor at a time: embeddings, head, norms and biases stay as they are stored.
    ///
    /// - Parameters:
    ///   - output: a folder that does not exist yet, or is empty
    ///   - startFolder: for the start's adapter, in PEFT's format; both folders are put in place, or neither
    ///   - progress: false stops; nothing is kept
    /// - Throws: `Failure` if the checkpoint is quantized, the folder exists, or a weight is not finite
    public func write(
        _ checkpoint: CheckpointFolder, to output: String, startFolder: String? = nil,
        progress: (WritingProgress) -> Bool = { _ in true }
    ) throws(Failure) -> Outcome {
        guard checkpoint.configuration.quantization == nil else {
            throw Failure(.usage, "\(checkpoint.path) is quantized already: give the folder of the unquantized model")
        }
        let maps = checkpoint.configuration.linearMaps
        let byTensor = Dictionary(uniqueKeysWithValues: maps.map { ($0.name + ".weight", $0) })
        var computeType = TensorType.f32
        let names = checkpoint.tensorNames
        var groups: [[TensorDeclaration]] = []
        for name in names {
            let tensor = try checkpoint.tensor(name)
            guard !tensor.dtype.isBlocks else {
                throw Failure(.usage, "\(checkpoint.path) is quantized already: give a model that is not")
            }
            if byTensor[name] != nil {
                computeType = tensor.dtype
                groups.append(
                    FourBitCodes.declarations(
                        name: name, shape: tensor.shape, dtype: tensor.dtype, format: format.name, blockSize: blockSize,
                        nested: nested))
            } else {
                groups.append([TensorDeclaration(name: name, dtype: tensor.dtype, shape: tensor.shape)])
            }
        }
        var configuration = try ModelFolderWriting.configurationFile(checkpoint)
        // What transformers would else expect to be packed too: every linear map that is no block's.
        let skipped = ["pooler", "classifier"].filter { _ in checkpoint.configuration.isEncoder }
        configuration.set(
            "quantization_config",
            FourBitCodes.quantizationConfiguration(
                format: format.name, computeType: computeType, nested: nested, skippedModules: skipped))
        var errors: [String: QuantizationStart.MapError] = [:]
        var entries: [String: PEFTAdapter.Entry] = [:]
        // What cannot be written is found before what takes long.
        let startPlace = try startFolder.map { (path) throws(Failure) in try PEFTAdapter.place(path) }
        let folder = try ModelFolderWriting.stage(
            checkpoint, output, configuration, groups, shardBytes: shardBytes, progress: progress
        ) { (index, writer) throws(Failure) in
            let tensor = try checkpoint.tensor(names[index])
            guard let map = byTensor[names[index]] else { return try ModelFolderWriting.copy(tensor, writer) }
            let codes: FourBitCodes
            if let start, start.maps.contains(map) {
                let made = try quantize(tensor, map, start)
                (codes, errors[map.name], entries[map.name]) = (made.codes, made.error, made.entry)
            } else {
                let source = try WeightSource(tensor, rows: map.outputs, columns: map.inputs)
                codes = try format.encode(source, blockSize: blockSize, nested: nested)
                if measuresError || start != nil {
                    let matrix = QuantizedMatrix(codes, rows: map.outputs, columns: map.inputs)
                    let (norm, error) = matrix.error(from: source)
                    errors[map.name] = .init(map: map.name, weightNorm: norm, plain: error, started: error)
                }
            }
            for part in codes.serialized(name: tensor.name, shape: tensor.shape, dtype: tensor.dtype) {
                try writer.append(part.declaration.name, bytes: part.bytes)
            }
        }
        let outcome = Outcome(errors: maps.compactMap { errors[$0.name] }, entries: maps.compactMap { entries[$0.name] })
        if let startPlace {
            let adapter = PEFTAdapter(entries: outcome.entries, baseModel: absolutePath(output))
            try adapter.stage(into: startPlace, maps: maps)
        }
        try putInPlace([folder] + (startPlace.map { [$0] } ?? []))
        return outcome
    }

    private func quantize(
        _ tensor: StoredTensor, _ map: LinearMap, _ start: Start
    ) throws(Failure) -> (codes: FourBitCodes, error: QuantizationStart.MapError, entry: PEFTAdapter.Entry) {
        let source = try WeightSource(tensor, rows: map.outputs, columns: map.inputs)
        let weights = source.floats()
        func encode(_ values: [Float]) throws(Failure) -> FourBitCodes {
            try format.encode(
                WeightSource(values, name: source.name, rows: map.outputs, columns: map.inputs), blockSize: blockSize,
                nested: nested)
        }
        let plain = QuantizedMatrix(try encode(weights), rows: map.outputs, columns: map.inputs).error(from: source)
        var generator = SeededGenerator(seed: start.seed, purpose: "start", client: map.name)
        let split = try QuantizationStart.split(
            weights: weights, outputs: map.outputs, inputs: map.inputs, rank: start.rank, scale: start.scale, order: start.order,
            steps: start.steps, generator: &generator
        ) { (values) throws(Failure) in
            QuantizedMatrix(try encode(values), rows: map.outputs, columns: map.inputs)
        }
        guard let codes = split.quantized.fourBitCodes, let error = split.errors.min() else {
            throw Failure(.internalError, "the start of \(map.name) has no codes")
        }
        return (
            codes, .init(map: map.name, weightNorm: plain.norm, plain: plain.error, started: error),
            PEFTAdapter.Entry(
                map: map.name, a: split.a, b: split.b, rank: start.rank, scale: start.scale, outputs: map.outputs,
                inputs: map.inputs)
        )
    }
}
