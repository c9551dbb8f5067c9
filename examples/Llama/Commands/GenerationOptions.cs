using System.CommandLine;
using Mustafar.Models.Checkpoint;
using Mustafar.Models.Generation;

namespace Mustafar.Examples.Llama.Commands;

/// <summary>Options of commands that generate text.</summary>
/// <param name="maxTokens">Default of --max-tokens.</param>
internal sealed class GenerationOptions(int maxTokens)
{
    private const string Default = "Default: the checkpoint's generation_config.json.";

    private readonly Option<double?> _temperature = CommandOption.Number<double>(
        "--temperature", $"Sampling temperature; 0 decodes greedily. {Default}", "T");

    private readonly Option<int?> _topK = CommandOption.Number<int>(
        "--top-k", $"Sample from the K likeliest tokens; 0: from all. {Default}", "K");

    private readonly Option<double?> _topP = CommandOption.Number<double>(
        "--top-p", $"Sample from the smallest set of likeliest tokens whose probabilities sum to P. {Default}", "P");

    private readonly Option<double?> _minP = CommandOption.Number<double>(
        "--min-p", $"Sample from tokens with at least P times the probability of the likeliest. {Default}", "P");

    private readonly Option<double?> _repetitionPenalty = CommandOption.Number<double>(
        "--repetition-penalty", $"Penalty on tokens already in the text: divides their positive logits and multiplies their negative ones. {Default}", "X");

    private readonly Option<double> _frequencyPenalty = CommandOption.Number(
        "--frequency-penalty", "Subtracted from a token's logit for each time it was generated before.", "X", 0.0);

    private readonly Option<double> _presencePenalty = CommandOption.Number(
        "--presence-penalty", "Subtracted from a token's logit if it was generated before.", "X", 0.0);

    private readonly Option<int> _seed = CommandOption.Number("--seed", "Random seed.", "S", 0);

    /// <summary>Maximum number of tokens to generate.</summary>
    public Option<int> MaxTokens { get; } = NewMaxTokens(maxTokens);

    /// <summary>All of them.</summary>
    public IEnumerable<Option> All => [MaxTokens, .. Choosing];

    private Option[] Choosing => [_temperature, _topK, _topP, _minP, _repetitionPenalty, _frequencyPenalty, _presencePenalty, _seed];

    /// <summary>The option for commands that decode greedily.</summary>
    public static Option<int> NewMaxTokens(int maxTokens) =>
        CommandOption.Number("--max-tokens", "Maximum number of tokens to generate.", "N", maxTokens);

    /// <summary>Names of the sampling options that are on the command line.</summary>
    public IReadOnlyList<string> GivenSampling(ParseResult arguments) =>
        [.. Choosing.Where(option => arguments.GetResult(option) is { Implicit: false }).Select(option => option.Name)];

    /// <summary>How to choose tokens: from the command line, with the checkpoint's settings as defaults.</summary>
    /// <param name="arguments">The command line.</param>
    /// <param name="model">Directory of the checkpoint.</param>
    /// <param name="output">Receives a warning about settings of the checkpoint that are not implemented.</param>
    /// <exception cref="CommandException">A value is out of range.</exception>
    /// <exception cref="CheckpointException">generation_config.json is not valid.</exception>
    public SamplingParameters Sampling(ParseResult arguments, string model, ConsoleOutput output)
    {
        GenerationConfig config = GenerationConfig.Load(model);
        if (config.Ignored.Count > 0)
        {
            output.Message($"warning: generation_config.json: {string.Join(", ", config.Ignored)} is not supported and has no effect");
        }

        return CommandOption.Made(
            () => config.Sampling with
            {
                Temperature = arguments.GetValue(_temperature) ?? config.Sampling.Temperature,
                TopK = arguments.GetValue(_topK) ?? config.Sampling.TopK,
                TopP = arguments.GetValue(_topP) ?? config.Sampling.TopP,
                MinP = arguments.GetValue(_minP) ?? config.Sampling.MinP,
                RepetitionPenalty = arguments.GetValue(_repetitionPenalty) ?? config.Sampling.RepetitionPenalty,
                FrequencyPenalty = arguments.GetValue(_frequencyPenalty),
                PresencePenalty = arguments.GetValue(_presencePenalty),
                Seed = unchecked((ulong)arguments.GetValue(_seed)),
            },
            (nameof(SamplingParameters.Temperature), _temperature),
            (nameof(SamplingParameters.TopK), _topK),
            (nameof(SamplingParameters.TopP), _topP),
            (nameof(SamplingParameters.MinP), _minP),
            (nameof(SamplingParameters.RepetitionPenalty), _repetitionPenalty),
            (nameof(SamplingParameters.FrequencyPenalty), _frequencyPenalty),
            (nameof(SamplingParameters.PresencePenalty), _presencePenalty));
    }
}
