using System.Text.Json;
using Mustafar.Models.Checkpoint;
using Mustafar.Models.Llama;

namespace Mustafar.Models.Generation;

/// <summary>The generation settings in a checkpoint's generation_config.json.</summary>
/// <param name="Sampling">How tokens are chosen if the caller doesn't say.</param>
/// <param name="Ignored">Settings that would change which tokens are chosen but are not implemented, each as <c>'key' = value</c>.</param>
/// <param name="EosTokenIds">Tokens that end a text; none if the file doesn't list any.</param>
public sealed record GenerationConfig(SamplingParameters Sampling, IReadOnlyList<string> Ignored, IReadOnlyList<int> EosTokenIds)
{
    // The defaults of transformers, if the file has do_sample but not these.
    private const double DefaultTemperature = 1;
    private const int DefaultTopK = 50;

    // Other keys that change which tokens are chosen, each with the value that has no effect.
    private static readonly (string Key, double Neutral)[] s_others =
    [
        ("typical_p", 1), ("epsilon_cutoff", 0), ("eta_cutoff", 0), ("no_repeat_ngram_size", 0), ("encoder_repetition_penalty", 1), ("num_beams", 1),
        ("penalty_alpha", 0), ("guidance_scale", 1),
    ];

    /// <summary>Reads generation_config.json of a checkpoint as transformers does: the repetition penalty always applies; temperature,
    /// top-k, top-p and min-p only with <c>do_sample</c>.</summary>
    /// <param name="directory">The checkpoint; without the file, decoding is greedy.</param>
    /// <exception cref="CheckpointException">The file is not valid.</exception>
    public static GenerationConfig Load(string directory)
    {
        string path = Path.Combine(directory, "generation_config.json");
        if (!Path.Exists(path))
        {
            return new GenerationConfig(SamplingParameters.Greedy, [], []);
        }

        using JsonDocument document = JsonFile.Open(path);
        JsonElement root = document.RootElement;
        string[] ignored = [.. s_others.Where(item => root.Find(item.Key) is JsonElement value && !value.IsNumber(item.Neutral))
            .Select(item => $"'{item.Key}' = {root.Find(item.Key)!.Value.Quote()}")];
        return new GenerationConfig(ReadSampling(root, path), ignored, LlamaConfigReader.TokenIds(root, "eos_token_id", path));
    }

    private static SamplingParameters ReadSampling(JsonElement root, string path)
    {
        double temperature = root.FindDouble("temperature", path) ?? DefaultTemperature;
        int topK = root.FindInt32("top_k", path) ?? DefaultTopK;
        double topP = root.FindDouble("top_p", path) ?? 1;
        double minP = root.FindDouble("min_p", path) ?? 0;
        double repetitionPenalty = root.FindDouble("repetition_penalty", path) ?? 1;
        try
        {
            return root.FindBoolean("do_sample", path) ?? false
                ? new() { Temperature = temperature, TopK = topK, TopP = topP, MinP = minP, RepetitionPenalty = repetitionPenalty }
                : SamplingParameters.Greedy with { RepetitionPenalty = repetitionPenalty };
        }
        catch (ArgumentOutOfRangeException exception)
        {
            string key = JsonNamingPolicy.SnakeCaseLower.ConvertName(exception.ParamName!);
            throw new CheckpointException($"'{key}' = {root.Find(key)!.Value.Quote()} is out of range.", path, innerException: exception);
        }
    }
}
