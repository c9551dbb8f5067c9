using System.Text.Json;
using Mustafar.Models.Checkpoint;
using static TorchSharp.torch;

namespace Mustafar.Models.Llama;

/// <summary>The architecture of a model of the Llama family.</summary>
public sealed record LlamaConfig
{
    private static readonly int[] s_compressedHeadDims = [64, 80, 96, 128, 256];

    /// <summary>Number of tokens in the vocabulary.</summary>
    public required int VocabSize { get; init; }

    /// <summary>Elements of a token's hidden state.</summary>
    public required int HiddenSize { get; init; }

    /// <summary>Elements of the MLP's intermediate state.</summary>
    public required int IntermediateSize { get; init; }

    /// <summary>Number of decoder layers.</summary>
    public required int NumLayers { get; init; }

    /// <summary>Number of query heads.</summary>
    public required int NumHeads { get; init; }

    /// <summary>Number of KV heads.</summary>
    public required int NumKvHeads { get; init; }

    /// <summary>Elements of one head.</summary>
    public required int HeadDim { get; init; }

    /// <summary>What a cache of the model is made with.</summary>
    /// <exception cref="ArgumentOutOfRangeException"><see cref="NumKvHeads"/> or <see cref="HeadDim"/> is not positive.</exception>
    public KeyValueShape KeyValueShape => new() { NumKvHeads = NumKvHeads, HeadDim = HeadDim };

    /// <summary>Added to the mean square in RMSNorm.</summary>
    public required double RmsNormEps { get; init; }

    /// <summary>Rotary positions.</summary>
    public required RotaryOptions Rotary { get; init; }

    /// <summary>Maximum context length of the model.</summary>
    public required int MaxPositions { get; init; }

    /// <summary>Whether the output head is the token embedding.</summary>
    public bool TieWordEmbeddings { get; init; }

    /// <summary>Whether the query, key and value projections have a bias.</summary>
    public bool QkvBias { get; init; }

    /// <summary>Whether the attention's output projection has a bias.</summary>
    public bool AttentionOutputBias { get; init; }

    /// <summary>Whether the MLP's projections have a bias.</summary>
    public bool MlpBias { get; init; }

    /// <summary>
    /// Whether each head's query and key are normalised before their positions are encoded, with <see cref="RmsNormEps"/>.
    /// </summary>
    public bool QueryKeyNorm { get; init; }

    /// <summary>Number of latest tokens that a layer with a sliding window sees, including the current one; no layer has a window if
    /// null.</summary>
    public int? SlidingWindow { get; init; }

    /// <summary>For each layer, whether it has the sliding window; if null, all layers have it, if there is one.</summary>
    public IReadOnlyList<bool>? SlidingLayers { get; init; }

    /// <summary>Type of the checkpoint's weights.</summary>
    public ScalarType DType { get; init; } = ScalarType.Float32;

    /// <summary>Tokens that end a text; generation_config.json may name others.</summary>
    public IReadOnlyList<int> EosTokenIds { get; init; } = [];

    /// <summary>
    /// Ids below <see cref="VocabSize"/> without a token, for example if the embedding is padded to a round size: never generated.
    /// </summary>
    public IReadOnlyList<int> UnusedTokenIds { get; init; } = [];

    /// <summary>Number of latest tokens that a layer sees, including the current one; all if null.</summary>
    /// <param name="layer">0 to <see cref="NumLayers"/> − 1.</param>
    public int? WindowOf(int layer) => SlidingLayers is null || SlidingLayers[layer] ? SlidingWindow : null;

    /// <summary>Checks that a compressed cache can hold keys and values of this model, before its weights are read.</summary>
    /// <param name="options">How the cache prunes.</param>
    /// <param name="path">The config.json that this was read from.</param>
    /// <exception cref="UnsupportedModelException">It can't: its head_dim is not supported, at all or with these options.</exception>
    public void CheckCompressible(MustafarOptions options, string path)
    {
        ArgumentNullException.ThrowIfNull(options);
        if (!s_compressedHeadDims.Contains(HeadDim))
        {
            throw new UnsupportedModelException(
                $"'head_dim' = {HeadDim} is not supported by the compressed cache, which supports {string.Join(", ", s_compressedHeadDims)}; "
                + "a dense cache (--attention dense) supports any even one.",
                path);
        }

        try
        {
            _ = options.KeysKept(HeadDim) + options.ValuesKept(HeadDim);
        }
        catch (NotSupportedException exception)
        {
            throw new UnsupportedModelException($"'head_dim' = {HeadDim} is not supported with these options: {exception.Message}", path);
        }
    }

    /// <summary>Reads a Hugging Face config.json, as transformers 4 or 5 writes it.</summary>
    /// <param name="path">The file.</param>
    /// <exception cref="FileNotFoundException">There is no such file.</exception>
    /// <exception cref="CheckpointException">A value is missing or not valid.</exception>
    /// <exception cref="UnsupportedModelException">The model needs a feature that is not implemented.</exception>
    public static LlamaConfig Load(string path)
    {
        using JsonDocument document = JsonFile.Open(path);
        return LlamaConfigReader.Read(document.RootElement, path);
    }
}
