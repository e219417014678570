/// The base digest: what makes two checkpoints the same base, however they are cut into files.

import Glibc
import Primitives

extension CheckpointFolder {
    /// SHA-256 over the sorted (name, dtype, shape, bytes) of all stored tensors, then over the configuration.
    ///
    /// - Parameter cache: a folder for digests already computed, keyed by the files' paths, sizes and modification
    ///   times; nil computes anew. A cache that cannot be written is no error.
    public func baseDigest(cache: String?) throws(Failure) -> Digest {
        var builder = DigestBuilder()
        builder.update(counted: "tributary base 1")
        builder.update(try tensorDigest(cache: cache).bytes)
        builder.update(counted: configuration.digestText)
        return builder.finish()
    }

    /// SHA-256 of `tokenizer.json`'s bytes; of a GGUF file, of the `tokenizer.json` that its metadata stand for.
    public func tokenizerDigest() throws(Failure) -> Digest {
        guard let bytes = try companion("tokenizer.json") else { throw noTokenizer }
        var builder = DigestBuilder()
        builder.update(bytes)
        return builder.finish()
    }

    private func tensorDigest(cache: String?) throws(Failure) -> Digest {
        let entry = cache.map { $0 + "/base-" + cacheKey + ".sha256" }
        if let entry, let bytes = try? readFile(entry, limit: 4096), bytes.count == 64,
            let digest = Digest(hexadecimal: String(decoding: bytes, as: UTF8.self))
        {
            return digest
        }
        var builder = DigestBuilder()
        for name in tensorNames {
            let tensor = try tensor(name)
            builder.update(counted: name)
            builder.update(counted: tensor.dtype.rawValue)
            var shape = ByteWriter()
            shape.write(UInt64(tensor.shape.count))
            for size in tensor.shape { shape.write(UInt64(size)) }
            builder.update(shape.bytes)
            tensor.file.adviseSequential(tensor.range)
            // Pages are given back as we go, so that hashing a large base does not count as memory in use.
            tensor.forEachPart { part in
                builder.update(UnsafeRawBufferPointer(rebasing: tensor.file.bytes[part]))
                if tensor.interleavedHeadSize == nil { tensor.file.release(part) }
            }
            tensor.file.release(tensor.range)
        }
        let digest = builder.finish()
        if let entry, let cache {
            makeFolders(cache)
            try? writeFile(entry, Array(digest.description.utf8))
        }
        return digest
    }

    /// Hexadecimal SHA-256 of what identifies the files without reading them.
    private var cacheKey: String {
        var builder = DigestBuilder()
        for path in weightFiles {
            builder.update(counted: absolutePath(path))
            var status = stat()
            _ = stat(path, &status)
            var fields = ByteWriter()
            fields.write(Int64(status.st_size))
            fields.write(Int64(status.st_mtim.tv_sec))
            fields.write(Int64(status.st_mtim.tv_nsec))
            builder.update(fields.bytes)
        }
        return builder.finish().description
    }
}

extension ModelConfiguration {
    /// Everything that changes what the base computes or what training appends to a text, one key a line.
    var digestText: String {
        let scaling =
            switch ropeScaling {
            case nil: "none"
            case .linear(let factor): "linear \(factor.bitPattern)"
            case .llama3(let factor, let low, let high, let positions):
                "llama3 \(factor.bitPattern) \(low.bitPattern) \(high.bitPattern) \(positions)"
            }
        return [
            "architecture \(architecture.rawValue)", "vocabulary \(vocabularySize)", "hidden \(hiddenSize)",
            "intermediate \(intermediateSize)", "layers \(layerCount)", "heads \(headCount)",
            "key-value heads \(keyValueHeadCount)",
            "head size \(headSize)", "positions \(maximumPositions)", "epsilon \(rmsNormEpsilon.bitPattern)",
            "theta \(ropeTheta.bitPattern)", "scaling \(scaling)", "tied \(tieWordEmbeddings)", "attention bias \(attentionBias)",
            "mlp bias \(mlpBias)", "begin \(beginTokens ?? -1)", "end \(endTokens.first ?? -1)",
        ].joined(separator: "\n")
            + (encoder.map {
                "\nsummary \($0.summary.rawValue)\nlayer norm \($0.layerNormEpsilon.bitPattern)\nfirst position \($0.firstPosition)"
            } ?? "")
    }
}

/// The path from the root, links resolved; what is not there yet, as it is written.
public func absolutePath(_ path: String) -> String {
    if let resolved = realpath(path, nil) {
        defer { free(resolved) }
        return String(cString: resolved)
    }
    let parts = path.split(separator: "/")
    guard let last = parts.last, path != "." else { return path }
    let folder = (path.hasPrefix("/") ? "/" : "") + parts.dropLast().joined(separator: "/")
    let place = absolutePath(folder.isEmpty ? "." : folder)
    return (place == "/" ? "" : place) + "/" + last
}
