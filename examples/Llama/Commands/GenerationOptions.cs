using System.CommandLine;
using Mustafar.Examples.Llama.Generation;

namespace Mustafar.Examples.Llama.Commands;

/// <summary>Options of commands that generate text.</summary>
/// <param name="maxTokens">Tokens to generate where the command line doesn't say.</param>
internal sealed class GenerationOptions(int maxTokens)
{
    private readonly Option<double> _temperature = CommandOption.WithDefault(
        "--temperature", "Divides the scores before a token is drawn; 0 takes the likeliest.", 0.0, "T");

    private readonly Option<int> _topK = new("--top-k") { Description = "Draw from the K likeliest tokens; 0 from all.", HelpName = "K" };

    private readonly Option<double> _topP = CommandOption.WithDefault(
        "--top-p", "Draw from the fewest of the likeliest tokens that have this probability together.", 1.0, "P");

    private readonly Option<double> _frequencyPenalty = new("--frequency-penalty")
    {
        Description = "Taken from a token's score for each time that it was generated before.",
        HelpName = "X",
    };

    private readonly Option<double> _presencePenalty = new("--presence-penalty")
    {
        Description = "Taken from a token's score if it was generated before.",
        HelpName = "X",
    };

    private readonly Option<int> _seed = new("--seed") { Description = "Start of the random numbers.", HelpName = "S" };

    /// <summary>Tokens to generate at most.</summary>
    public Option<int> MaxTokens { get; } = NewMaxTokens(maxTokens);

    /// <summary>All of them.</summary>
    public IEnumerable<Option> All => [MaxTokens, .. Choosing];

    private Option[] Choosing => [_temperature, _topK, _topP, _frequencyPenalty, _presencePenalty, _seed];

    /// <summary>The option of commands that always take the likeliest token.</summary>
    public static Option<int> NewMaxTokens(int maxTokens) =>
        CommandOption.WithDefault("--max-tokens", "Tokens to generate at most.", maxTokens, "N");

    /// <summary>Names of the options on the command line that say how tokens are drawn.</summary>
    public IReadOnlyList<string> GivenSampling(ParseResult arguments) =>
        [.. Choosing.Where(option => arguments.GetResult(option) is { Implicit: false }).Select(option => option.Name)];

    /// <summary>How the command line wants tokens to be chosen.</summary>
    /// <exception cref="ArgumentOutOfRangeException">A value is out of range.</exception>
    public SamplingOptions Sampling(ParseResult arguments) => new()
    {
        Temperature = arguments.GetValue(_temperature),
        TopK = arguments.GetValue(_topK),
        TopP = arguments.GetValue(_topP),
        FrequencyPenalty = arguments.GetValue(_frequencyPenalty),
        PresencePenalty = arguments.GetValue(_presencePenalty),
        Seed = arguments.GetValue(_seed),
    };
}
