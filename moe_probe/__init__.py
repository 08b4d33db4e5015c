"""What do the experts of a mixture-of-experts language model specialise in?"""
